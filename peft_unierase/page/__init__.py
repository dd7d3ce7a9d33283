"""The page of `unierase demo`: ask a base and its erased model side by side, and try to break the erasure.

`models`, `breaking`, `live` and `reports` say what the models say and know no Gradio; `drawing` draws, `parts` writes
HTML, and `layout` puts all of it on a page.
"""
