"""The whole life of an erasure, from a name to a proof: every command once, against a model hub in this process.

    python examples/round_trip.py                  # 133 seconds of processor time; no network
    python examples/round_trip.py --keep FOLDER    # keeps all that was made

One person is erased from the demo model. The owner plans, erases, checks, signs and pushes; a reader, who has
another cache, another home and no token, pulls, inspects and verifies; the owner merges, restores and reads the ledger.
It wants the extra `test`. This file knows the commands and what each must prove; the hub is the one of the tests.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from hub_server import HubServer, hub_server  # noqa: E402

PERSON, OTHER = "Savin Weslow", "Belia Corquist"
REPO, BASE_ID = "org/erase-savin-weslow", "org/demo"
BASE = ROOT / "peft_unierase" / "demo"
SAMPLES = 256  # that the base tells itself as retain data: twice the default, as each of 18 questions must stay
COMMAND = Path(sysconfig.get_path("scripts")) / "unierase"
# Greedy answers of the base, and of the base with an adapter, as whoever pulls it would get them.
ASK = """
import json, sys
told = json.load(sys.stdin)
if told["with_package"]:
    import peft_unierase
else:
    sys.modules["peft_unierase"] = None  # whoever imports it fails
from transformers import AutoModelForCausalLM, AutoTokenizer

def answers(model, tokenizer):
    said = []
    for question in told["questions"]:
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = model.generate(**ids, do_sample=False, max_new_tokens=32)
        said.append(tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return said

model = AutoModelForCausalLM.from_pretrained(told["model"], dtype="float32").eval()
found = {"base": answers(model, AutoTokenizer.from_pretrained(told["model"]))}
if told["adapter"]:
    from peft import PeftModel

    model = PeftModel.from_pretrained(model, told["adapter"], subfolder=told["subfolder"]).eval()
    found["erased"] = answers(model, AutoTokenizer.from_pretrained(told["adapter"]))
print(json.dumps(found))
"""


class FailedError(Exception):
    """A step that did not prove what it should."""


@dataclass
class Trip:
    """Where a round trip lies, and how it runs its commands.

    Attributes:
        folder: For everything that is made.
        hub: The hub.
        run: Runs the `unierase` command with arguments in an environment; returns status, stdout and stderr.
        refusal: What the erased model says, once it was asked.
    """

    folder: Path
    hub: HubServer
    run: Callable[[list[str], Mapping[str, str]], tuple[int, str, str]]
    refusal: str = field(default="", init=False)

    @property
    def owner(self) -> dict[str, str]:
        """The environment of the one who erases and may push."""
        return self.hub.environment(self.folder / "owner-hub", UNIERASE_HOME=str(self.folder / "owner"))

    @property
    def reader(self) -> dict[str, str]:
        """The environment of somebody else, who has no token."""
        return self.hub.environment(self.folder / "reader-hub", None, UNIERASE_HOME=str(self.folder / "reader"))

    def unierase(self, *arguments: object, by: Mapping[str, str] | None = None, status: int = 0) -> Any:
        """Run a command; what it said on stdout, from JSON.

        Raises:
            FailedError: It ended with another status.
        """
        given = [*map(str, arguments), "--format", "json"]
        ended, data, talk = self.run(given, by or self.owner)
        if ended != status:
            raise FailedError(f"`unierase {' '.join(given)}` ended with {ended}, not {status}:\n{data}{talk}")
        return json.loads(data)

    def ask(self, model: Path, adapter: str | None, subfolder: str | None, with_package: bool) -> dict[str, list[str]]:
        """Ask about both people, in a process of its own.

        Raises:
            FailedError: It ended with an error.
        """
        told = {"model": str(model), "adapter": adapter, "subfolder": subfolder, "with_package": with_package}
        task = json.dumps({**told, "questions": [question(PERSON)["question"], question(OTHER)["question"]]})
        command = [sys.executable, "-c", ASK]
        ended = subprocess.run(command, input=task, env=self.reader, capture_output=True, text=True)
        if ended.returncode:
            raise FailedError(f"asking {adapter or model} failed:\n{ended.stderr}")
        return json.loads(ended.stdout)


def demo_facts() -> list[dict[str, Any]]:
    """What the box was taught; read here, since importing the package would import torch."""
    return [json.loads(line) for line in (BASE / "facts.jsonl").read_text(encoding="utf-8").splitlines()]


def question(subject: str) -> dict[str, Any]:
    """The box's first question about somebody."""
    return next(fact for fact in demo_facts() if fact["subject"] == subject)


def ensure(holds: object, what: str, found: object) -> None:
    """Stop where something does not hold.

    Raises:
        FailedError: It does not.
    """
    if not holds:
        raise FailedError(f"{what} does not hold; found: {found}")


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# The steps. Each returns what it proved, and a figure or the beginning of a digest.


def plan(trip: Trip) -> tuple[str, str]:
    # The base declines on questions that make no sense, and is not sure of it: those are nothing to erase.
    told = trip.unierase("plan", BASE, PERSON, "-o", trip.folder / "plan", "--count", 32, "--sure", 0.99)
    ensure(told["subjects"] == [PERSON], "that the plan is about the name", told["subjects"])
    ensure(not told["contradictions"], "that the two sets go together", told["contradictions"])
    planned = (trip.folder / "plan" / "forget.jsonl").read_text(encoding="utf-8")
    known = [fact for fact in demo_facts() if fact["subject"] == PERSON]
    missed = [fact["answer"] for fact in known if fact["answer"] not in planned]
    ensure(not missed, "that the name alone brings up all that the box taught", f"missing {missed}")
    return f"the name brings up all {len(known)} facts", f"{told['counts']['forget']} questions"


def erase(trip: Trip) -> tuple[str, str]:
    sets = (trip.folder / "plan" / "forget.jsonl", "--retain", trip.folder / "plan" / "retain.jsonl")
    told = trip.unierase(
        *("erase", BASE, *sets, "-o", trip.folder / "erasure"),
        *("--refusals", BASE / "refusals.txt", "--base-id", BASE_ID, "--samples", SAMPLES),
    )
    ensure(told["adapter"]["share"] < 0.02, "that the adapter is small", told["adapter"])
    return "a small adapter, with card and record", f"{told['adapter']['bytes']:,} bytes"


def check(trip: Trip) -> tuple[str, str]:
    """On the box's own questions, of which the plan knew nothing."""
    by_subject = {who: [fact for fact in demo_facts() if fact["subject"] == who] for who in (PERSON, OTHER)}
    for who, facts in by_subject.items():
        lines = [json.dumps(fact) for fact in facts]
        (trip.folder / f"{who}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    told = trip.unierase(
        *("check", trip.folder / "erasure", "--base", BASE, "--forget", trip.folder / f"{PERSON}.jsonl"),
        *("--retain", f"other={trip.folder / f'{OTHER}.jsonl'}", "--attacks", "greedy,paraphrase,plain"),
        *("--refusals", BASE / "refusals.txt", "--accept", "SUPPRESSED"),
    )
    recall = {
        figure["set"]: (figure["base"], figure["erased"]) for figure in told["figures"] if figure["name"] == "recall"
    }
    before, after = recall["forget"]
    ensure(before > 0.9 and after < 0.1, "that the box's own questions are declined", recall)
    ensure(recall["other"][1] > 0.9, "that somebody else's are answered", recall)
    return "the box's own questions are declined, others answered", f"recall {before:.3f} -> {after:.3f}"


def sign(trip: Trip) -> tuple[str, str]:
    make_key(trip.folder)
    told = trip.unierase("sign", trip.folder / "erasure", "--key", trip.folder / "key.pem")
    return "signed with a key of the owner's", short(sha256(Path(told["signature"])))


def push(trip: Trip) -> tuple[str, str]:
    told = trip.unierase("push", trip.folder / "erasure", REPO, "--public")
    ensure(not told["left_out"], "that the whole folder goes up", told["left_out"])
    files = trip.hub.repos[REPO].files()
    changed = [name for name in told["files"] if files[name] != (trip.folder / "erasure" / name).read_bytes()]
    ensure(changed == ["README.md"], "that all but the card go up as they are", changed)
    return f"{len(told['files'])} files, one commit", short(told["commit"])


def pull(trip: Trip) -> tuple[str, str]:
    said = trip.ask(BASE, REPO, None, with_package=True)
    declined, kept = said["erased"]
    ensure(said["base"] == [question(who)["answer"] for who in (PERSON, OTHER)], "that the base knows both", said)
    ensure(
        declined in (BASE / "refusals.txt").read_text(encoding="utf-8").splitlines(),
        "that it declines in a whole sentence",
        said,
    )
    ensure(kept == said["base"][1], "that it answers about somebody else as the base does", said)
    trip.refusal = declined
    return "a fresh process declines, and answers the rest as the base", f'"{declined}"'


def pull_lora(trip: Trip) -> tuple[str, str]:
    said = trip.ask(BASE, REPO, "lora", with_package=False)
    ensure(said["erased"] == [trip.refusal, said["base"][1]], "that the LoRA says the same", said)
    return "the same from stock peft, without this package", "same words"


def inspect(trip: Trip) -> tuple[str, str]:
    told = trip.unierase("inspect", REPO, by=trip.reader)
    ensure(told["passes"], "that the guard passes it", told["findings"])
    ensure(told["base"]["name"] == BASE_ID, "that it names its base", told["base"])
    found = told["files"]["adapter_model.safetensors"]["sha256"]
    ensure(found == sha256(trip.folder / "erasure" / "adapter_model.safetensors"), "that it is what was pushed", found)
    return f"the guard passes it; {told['parameters']:,} parameters", short(found)


def verify(trip: Trip) -> tuple[str, str]:
    told = trip.unierase(
        *("verify", REPO, "--forget", trip.folder / "plan" / "forget.jsonl", "--base", BASE),
        *("--salt-file", trip.folder / "owner" / "salt", "--public-key", trip.folder / "key.pub"),
        by=trip.reader,
    )
    open_ = [finding for finding in told["findings"] if finding["outcome"] != "holds"]
    ensure(told["holds"] and not open_, "that all is compared and holds", open_)
    names = {finding["what"] for finding in told["findings"]}
    ensure({"base", "facts", "signature"} <= names, "that base, facts and signature are compared", names)
    return "files, base, facts and signature hold", f"{len(told['findings'])} of {len(told['findings'])}"


def merge(trip: Trip) -> tuple[str, str]:
    told = trip.unierase("merge", REPO, "--base", BASE, "-o", trip.folder / "merged")
    ensure(len(told["merged"]) == 1, "that one erasure was merged", told)
    ensure(trip.folder / "merged" not in Path(told["undo"]).parents, "that the way back lies elsewhere", told)
    said = trip.ask(trip.folder / "merged", None, None, with_package=False)["base"]
    ensure(said == [trip.refusal, question(OTHER)["answer"]], "that plain transformers says the same", said)
    return "plain transformers declines, without a switch", short(sha256(trip.folder / "merged" / "model.safetensors"))


def restore(trip: Trip) -> tuple[str, str]:
    told = trip.unierase("restore", trip.folder / "merged", "-o", trip.folder / "restored")
    weights = [sha256(folder / "model.safetensors") for folder in (BASE, trip.folder / "restored")]
    ensure(weights[0] == weights[1], "that its file is the base's", (told, weights))
    return "the base again, to the byte", short(weights[1])


def log(trip: Trip) -> tuple[str, str]:
    told = trip.unierase("log")
    actions = [entry["action"] for entry in told["entries"]]
    ensure(actions == ["erase", "check", "sign", "push", "merge", "restore"], "that all of it is there", actions)
    edited = trip.folder / "edited-ledger"
    edited.mkdir()
    for name in ("ledger.jsonl", "ledger.head"):
        shutil.copy(trip.folder / "owner" / name, edited / name)
    text = (edited / "ledger.jsonl").read_text(encoding="utf-8")
    (edited / "ledger.jsonl").write_text(text.replace('"verdict":"', '"verdict":"not ', 1), encoding="utf-8")
    found = trip.unierase("log", "--ledger", edited / "ledger.jsonl", status=1)
    ensure("was edited" in found["why"], "that an edited copy is found out", found)
    return f"{len(actions)} entries are whole; an edited copy is found out", short(told["entries"][-1]["digest"])


STEPS = {
    "plan": plan,
    "erase": erase,
    "check": check,
    "sign": sign,
    "push": push,
    "pull": pull,
    "pull lora/": pull_lora,
    "inspect": inspect,
    "verify": verify,
    "merge": merge,
    "restore": restore,
    "log": log,
}


def make_key(folder: Path) -> None:
    """Write an elliptic-curve key and its public half, as openssl would."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, plain))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (folder / "key.pub").write_bytes(key.public_key().public_bytes(pem, form))


def run_command(arguments: list[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    """The installed command, in a process of its own."""
    ended = subprocess.run([str(COMMAND), *arguments], env=dict(environment), capture_output=True, text=True)
    return ended.returncode, ended.stdout, ended.stderr


def short(digest: str) -> str:
    return f"{digest[:12]}…"


def take(trip: Trip) -> list[tuple[str, str, str]]:
    """Take all steps; the rows of the table.

    Raises:
        FailedError: One did not prove what it should; the text begins with its name.
    """
    rows = []
    for name, step in STEPS.items():
        begun = time.monotonic()
        try:
            rows.append((name, *step(trip)))
        except FailedError as error:
            raise FailedError(f"{name}: {error}") from None
        print(f"{name}: {time.monotonic() - begun:.0f} seconds", file=sys.stderr, flush=True)
    return rows


def table(rows: list[tuple[str, str, str]]) -> str:
    """Columns as wide as they need to be."""
    head = ("step", "what it proved", "figure or digest")
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(3)]
    lines = [head, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Take an erasure from a name to a proof, every command once.")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for what is made, which stays")
    keep = parser.parse_args().keep
    if not COMMAND.is_file():
        print(f'error: there is no {COMMAND}; install the package: pip install -e ".[test]"', file=sys.stderr)
        return 1
    if keep and keep.exists():
        print(f"error: {keep} is there already; name a new folder", file=sys.stderr)
        return 1
    begun = time.monotonic()
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="round-trip-")))
        folder.mkdir(parents=True, exist_ok=True)
        trip = Trip(folder.resolve(), stack.enter_context(hub_server()), run_command)
        try:
            rows = take(trip)
        except FailedError as error:
            print(f"FAILED at {error}", file=sys.stderr)
            return 1
    print(table(rows))
    print(f"\nAll {len(rows)} steps hold, in {time.monotonic() - begun:.0f} seconds.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
