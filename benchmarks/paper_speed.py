"""Recipe `paper`, batched, against one request at a time with full solves, on the same machine in the same run.

    python benchmarks/paper_speed.py [--shared ../shared] [--facts 400] [--json out.json]

The other side works as the published reference is described: for every fact it finds the target vector by gradient
steps through the whole model, then takes each layer's key and solves a `d_ff x d_ff` system, with the projector formed
and the keys of all earlier facts in it. Learning the token, recording the retained texts and the output row are the
same on both sides and done once on each. Both have the same settings: where to start and stop, ridge, threshold, seed.
A gradient step of a request asks in all formats, one of the batched side in one of them; it has half as many at the
most. It ends with 1 if the batched side is less than 20 times as fast or its forget recall differs by more
than 0.03. The testbed is not part of the package; where it is missing the script says so and exits with 0.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import bare
from peft import get_peft_model
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase import UniEraseConfig, read_facts
from peft_unierase.checking import answer_questions, figures
from peft_unierase.engine.layers import choose_sites
from peft_unierase.engine.paper import PaperSettings, run_paper
from peft_unierase.engine.paper.edit import RIDGE
from peft_unierase.engine.paper.kept import find_null_spaces, record_kept
from peft_unierase.engine.paper.marks import find_marks
from peft_unierase.engine.paper.output_row import CHANGE_DECAY, CHANGE_LEARNING_RATE, LARGEST_CHANGE
from peft_unierase.engine.paper.recipe import fit_common
from peft_unierase.engine.paper.targets import ARRIVED, START
from peft_unierase.engine.paper.token import learn_refusals
from peft_unierase.engine.run_context import RunContext
from peft_unierase.engine.spare_row import find_spare_rows
from peft_unierase.lm.batches import pad_id, pad_left
from peft_unierase.lm.formats import default_formats
from peft_unierase.lm.trace import inputs_at
from peft_unierase.progress import Stages


def make_run(folder: Path, data: Path, facts: int, seed: int) -> tuple[RunContext, Any]:
    """The testbed with an adapter in place, as `erase` would hand it to a recipe."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stack, layers, names = choose_sites(model, whole=False)
    spare = find_spare_rows(model, tokenizer)[0]
    config = UniEraseConfig(
        task_type="CAUSAL_LM", target_modules=names, token_id=spare.token_id, token=spare.text, inference_mode=True
    )
    wrapped = get_peft_model(model, config).eval()
    wrapped.requires_grad_(False)
    refusals = [line for line in (data / "refusals.txt").read_text(encoding="utf-8").splitlines() if line.strip()]
    run = RunContext(
        model=model,
        tokenizer=tokenizer,
        formats=default_formats(tokenizer),
        refusals=refusals,
        stages=Stages(False),
        generator=torch.Generator().manual_seed(seed),
        pad=pad_id(tokenizer),
        seed=seed,
        adapter="default",
        stack=stack,
        layers=layers,
        names=names,
        spare=spare,
        forget=bare(read_facts(data / "forget.json"))[:facts],
        retain=bare(read_facts(data / "retain_more.json")),
    )
    return run, wrapped


class OneByOne:
    """Stage II, one request at a time.

    Each request finds its own target on the base by the same rule as the batched side, but through the whole model;
    then `Delta = R K^T P (K K^T P + K_p K_p^T P + lambda I)^-1` is solved as it is written, and added to the weight.
    """

    def __init__(self, run: RunContext, settings: PaperSettings) -> None:
        self.run, self.settings = run, settings
        self.originals = [projection.get_base_layer().weight for projection in run.projections()]
        self.edited = [nn.Parameter(weight.detach().clone(), requires_grad=False) for weight in self.originals]
        self.projectors: list[torch.Tensor] = []
        self.caches: list[torch.Tensor] = []

    def put(self, weights: list[nn.Parameter]) -> None:
        """Put the base's weights or the edited ones in place."""
        for projection, weight in zip(self.run.projections(), weights, strict=True):
            projection.get_base_layer().weight = weight

    def find_target(self, prompts: list[list[int]], marks: list[int], common: torch.Tensor) -> torch.Tensor:
        """The stream's values behind the last edited layer for one request, `(prompts, d)`."""
        run, settings = self.run, self.settings
        batch = pad_left(prompts, run.pad, run.device, list(range(len(prompts))))
        columns = torch.tensor([batch.ids.shape[1] - len(p) + m for p, m in zip(prompts, marks, strict=True)])
        rows = torch.arange(len(prompts))
        layer = run.stack[run.layers[-1]]
        start = torch.cat(
            inputs_at(run.model, [run.stack[run.layers[-1] + 1]], prompts, [[m] for m in marks], run.pad)[0]
        )
        norm = start.norm(dim=-1).mean()
        change = (START * common).clone().requires_grad_(True)
        rate = CHANGE_LEARNING_RATE * float(norm) / len(change) ** 0.5
        optimizer = torch.optim.Adam([change], lr=rate)

        def bend(_: nn.Module, __: Any, output: Any) -> Any:
            stream = (output[0] if isinstance(output, tuple) else output).clone()
            stream[rows, columns] = stream[rows, columns] + change
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        steps = settings.target_steps // 2
        for step in range(steps + 1):
            handle = layer.register_forward_hook(bend)
            logits = run.model(**batch.inputs(), use_cache=False).logits[:, -1]
            handle.remove()
            losses = -logits.log_softmax(dim=-1)[:, run.spare.token_id]
            if step == steps or float(losses.max().detach()) < ARRIVED:
                break
            loss = losses.sum() + CHANGE_DECAY * change.square().sum() / norm.square()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                change *= (LARGEST_CHANGE * norm / change.norm()).clamp(max=1.0)
        return start + change.detach()

    def erase(self, prompts: list[list[int]], marks: list[int], targets: torch.Tensor) -> None:
        """Edit every layer for one request."""
        run, behind = self.run, self.run.stack[self.run.layers[-1] + 1]
        projections = run.projections()
        pending = []
        for number, projection in enumerate(projections):
            found, streams = inputs_at(run.model, [projection, behind], prompts, [[m] for m in marks], run.pad)
            keys, stream = torch.cat(found).double().T, torch.cat(streams)
            residuals = (targets - stream).T.double() / (len(projections) - number)
            ridge = RIDGE * float(keys.square().sum(dim=0).mean())
            projector, own = self.projectors[number], keys @ keys.T
            inner = (own + self.caches[number]) @ projector + ridge * torch.eye(len(keys), dtype=torch.float64)
            update = torch.linalg.solve(inner.T, (residuals @ keys.T @ projector).T).T
            weight = projection.get_base_layer().weight
            weight.data += update.to(weight)
            pending.append(own)
        for cache, own in zip(self.caches, pending, strict=True):
            cache += own


def run_one_by_one(run: RunContext, settings: PaperSettings) -> None:
    """The whole recipe, stage II one request at a time."""
    marks, _ = find_marks(run)
    run.start_rows()
    learn_refusals(run, settings)
    moments, silence = record_kept(run)
    spaces = find_null_spaces(run, moments, settings.null_threshold)
    prompts, width = run.prompts(run.forget), len(run.formats)
    common = fit_common(run, settings, prompts, marks, silence)
    editor = OneByOne(run, settings)
    with run.stages.stage("one request at a time", len(run.forget)):
        for space in spaces:
            basis = space.basis @ space.basis.T
            editor.projectors.append(basis if space.spans_null else torch.eye(len(basis)).double() - basis)
            editor.caches.append(torch.zeros_like(basis))
        for first in tqdm(range(0, len(prompts), width), disable=None):
            request = slice(first, first + width)
            editor.put(editor.originals)
            targets = editor.find_target(prompts[request], marks[request], common)
            editor.put(editor.edited)
            editor.erase(prompts[request], marks[request], targets)


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # facts without a subject: the same on both sides
        work()
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shared", type=Path, default=Path(__file__).parents[2] / "shared", help="folder of the testbed"
    )
    parser.add_argument("--facts", type=int, default=400, help="forget the first N facts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="store the figures here")
    options = parser.parse_args()
    folder, data = options.shared / "testbed" / "tofu-mini", options.shared / "data" / "tofu"
    if not folder.is_dir() or not data.is_dir():
        print(f"skipped: there is no testbed at {options.shared}")
        return 0

    settings = PaperSettings()
    held_out = bare(read_facts(data / "retain.json"))[::4]
    report: dict[str, Any] = {"facts": options.facts, "seed": options.seed, "threads": torch.get_num_threads()}
    for name, method in (("batched", run_paper), ("one by one", run_one_by_one)):
        run, model = make_run(folder, data, options.facts, options.seed)
        seconds = timed(lambda method=method, run=run: method(run, copy.copy(settings)))
        recalls = {
            kind: figures(answer_questions(model, run.tokenizer, facts, run.formats[0], None, 56)).recall
            for kind, facts in (("forget", run.forget), ("retain", held_out))
        }
        report[name] = {"seconds": seconds, "stages": dict(run.stages.seconds), **recalls}
        print(
            f"{name:12s} {seconds:8.1f} s   forget {recalls['forget']:.3f}   retain {recalls['retain']:.3f}", flush=True
        )
        print({stage: round(spent, 1) for stage, spent in run.stages.seconds.items()}, flush=True)
    batched, single = report["batched"], report["one by one"]
    report["times_as_fast"] = single["seconds"] / batched["seconds"]
    own = sum(batched["stages"][name] for name in ("finding targets", "editing layers"))
    report["times_as_fast_stage_two"] = single["stages"]["one request at a time"] / own
    apart = abs(batched["forget"] - single["forget"])
    print(
        f"batched is {report['times_as_fast']:.1f} times as fast, targets and edits alone "
        f"{report['times_as_fast_stage_two']:.1f} times; forget recalls are {apart:.3f} apart"
    )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0 if report["times_as_fast"] >= 20 and apart <= 0.03 else 1


if __name__ == "__main__":
    sys.exit(main())
