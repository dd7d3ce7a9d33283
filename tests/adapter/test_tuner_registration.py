"""`import peft_unierase` makes UNIERASE a PEFT type, once, and leaves the other types as they were."""

from __future__ import annotations

import copy
import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from peft import LoraConfig, PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

import peft_unierase
from peft_unierase.adapter.model import UniEraseModel
from peft_unierase.guard import register
from peft_unierase.guard.config import UniEraseConfig


@pytest.mark.slow
def test_import_registers_the_type_in_a_fresh_process(fresh_processes):
    report = fresh_processes[0].report
    assert report == {"known_before": False, "config": "UniEraseConfig", "tuner": "UniEraseModel"}


def test_a_script_that_is_called_like_the_command_registers_it_too() -> None:
    script = "import sys; sys.argv = ['/bin/unierase']; import peft_unierase, peft; print(peft.PeftType.UNIERASE.value)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).split()[-1] == "UNIERASE"


def test_peft_finds_config_tuner_and_prefix_by_the_member():
    member = PeftType("UNIERASE")
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member] is UniEraseConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[member] is UniEraseModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == UniEraseModel.prefix


def test_the_member_is_a_full_member_of_the_enum():
    member = PeftType.UNIERASE
    assert isinstance(member, PeftType)
    assert PeftType["UNIERASE"] is PeftType("UNIERASE") is member
    assert (member.name, member.value, str.__str__(member)) == ("UNIERASE", "UNIERASE", "UNIERASE")
    assert list(PeftType).count(member) == 1
    assert member in PeftType
    assert member == "UNIERASE"
    assert hash(member) == hash(PeftType("UNIERASE"))


def test_the_member_survives_pickling_and_copying_as_itself():
    member = PeftType.UNIERASE
    assert pickle.loads(pickle.dumps(member)) is member
    assert copy.deepcopy(member) is member


def test_registering_again_changes_nothing():
    before, members = PeftType.UNIERASE, list(PeftType)
    register()
    importlib.reload(peft_unierase)
    assert PeftType.UNIERASE is before
    assert list(PeftType) == members
    assert PEFT_TYPE_TO_CONFIG_MAPPING[before] is UniEraseConfig


def test_other_types_are_left_alone(tmp_path: Path):
    members = list(PeftType)
    assert len(set(members)) == len(members) == len(PeftType.__members__)
    assert LoraConfig().peft_type is PeftType.LORA
    LoraConfig(r=3).save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).r == 3
    with pytest.raises(ValueError, match="UNIERAS"):
        PeftType("UNIERAS")


def test_a_config_read_from_disk_has_the_member_and_not_its_name(tmp_path: Path):
    UniEraseConfig(token_id=3).save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).peft_type is PeftType.UNIERASE
