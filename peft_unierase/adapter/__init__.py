"""The adapter: what PEFT puts into a model. It knows nothing of how erasures are made, judged or shared."""
