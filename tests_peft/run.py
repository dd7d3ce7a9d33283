"""Runs PEFT's own test-suite, of the installed version, on this tuner: `make peft-suite`.

The suite comes from PEFT's source distribution, which pip fetches once into `.peft-suite`; its models are made here, at
random. Nothing is looked for on the Hub. Arguments go to pytest, for instance `-x -k merge`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / ".peft-suite"
SETTINGS = "[pytest]\naddopts = -q --tb=short --disable-warnings -p no:cacheprovider\n"
# Imported by the suite for tests that are not run here.
DIFFUSERS = "class StableDiffusionPipeline:\n    pass\n"


def fetch(version: str) -> Path:
    """The source distribution of a version of PEFT; PIP_ARGS in the environment goes to pip."""
    path = FOLDER / f"peft-{version}.tar.gz"
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "peft"]
        command += ["--dest", str(FOLDER), *shlex.split(os.environ.get("PIP_ARGS", "")), f"peft=={version}"]
        if subprocess.run(command).returncode or not path.exists():
            sys.exit(f"pip could not fetch PEFT {version}, for the reason above; {path} can also be put there by hand")
    return path


def unpack(archive: Path) -> Path:
    """A fresh folder with what is run of the suite as the package `tests`, under our names where cases.py renames."""
    from cases import LISTS, RENAMED

    folder = archive.with_name(archive.name.removesuffix(".tar.gz"))
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tests").mkdir(parents=True)
    (folder / "tests" / "__init__.py").touch()
    (folder / "pytest.ini").write_text(SETTINGS)
    if importlib.util.find_spec("diffusers") is None:
        (folder / "diffusers.py").write_text(DIFFUSERS)
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(member.name)
            if path.parts[1:-1] == ("tests",) and path.name in {*LISTS, *RENAMED, "testing_utils.py"}:
                text = tar.extractfile(member).read().decode()
                for old, new in RENAMED.get(path.name, {}).items():
                    text, count = re.subn(old, new, text)
                    if not count:
                        sys.exit(f"nothing to rename for {old!r} in {path.name}; see cases.py")
                (folder / "tests" / path.name).write_text(text)
    return folder


def make_models(folder: Path) -> None:
    """Save the models of cases.py: random, biases too, and with weights large enough for outputs that differ."""
    import torch
    from cases import LORA_CONFIG, MODELS
    from peft import LoraConfig
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    for name, settings in MODELS.items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(**settings, **tokens, initializer_range=0.2, init_std=0.2)
        model = AutoModelForCausalLM.from_config(config)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder / name)
    LoraConfig().save_pretrained(folder / LORA_CONFIG)


def main() -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it
    FOLDER.mkdir(exist_ok=True)
    folder = unpack(fetch(importlib.metadata.version("peft")))
    make_models(folder)
    os.chdir(folder)

    import plugin
    import pytest

    return pytest.main(["tests", *sys.argv[1:]], plugins=[plugin])


if __name__ == "__main__":
    sys.exit(main())
