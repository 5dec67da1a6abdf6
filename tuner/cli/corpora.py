"""The command that looks at a text before it is searched on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from models.wording import counted

if TYPE_CHECKING:
    from models.config import Corpus
    from models.text.inspection import Inspection


@click.command()
@click.argument("texts", metavar="TEXT...", nargs=-1, required=True)
@click.option("--field", help="Key or column that holds the text in files of records.")
@click.option(
    "--vocabulary-size",
    type=click.IntRange(300, 1_000_000),
    default=2048,
    show_default=True,
    help="Entries that the word and byte-pair tokenizers may learn.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1, 10**15),
    help="Budget of a trial, to say how often it reads the text.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def corpus(texts: tuple[str, ...], field: str | None, vocabulary_size: int, tokens: int | None, as_json: bool) -> None:
    """Look at a text: what is in it, what each tokenizer makes of it, what a budget means.

    TEXT is a file, folder or pattern as a study file has it, or a study file, whose corpus and budget then count.
    """
    from models.config import Config
    from models.reader import kinds_of
    from models.text.inspection import inspect

    source, budget = _source(texts, field)
    kinds = kinds_of(Config.model_fields["tokenizer"].annotation)
    found = inspect(source, [(kind, vocabulary_size) for kind in kinds])
    tokens = tokens or budget
    if as_json:
        click.echo(json.dumps(asdict(found) | {"budget_tokens": tokens}, indent=2))
    else:
        click.echo("\n".join(_lines(found, tokens)))


def _source(texts: tuple[str, ...], field: str | None) -> tuple[Corpus, int | None]:
    """The corpus that is asked for, and the tokens of a trial where it is a study's."""
    from models.config import Corpus, resolve_path
    from models.shorthand import corpus_meant
    from tuner.study.definition import read_study

    if len(texts) == 1 and Path(texts[0]).suffix in (".yaml", ".yml"):
        study = read_study(Path(texts[0]), rehearsed=False)
        return study.corpus, study.trial.tokens
    given = corpus_meant(texts[0] if len(texts) == 1 else list(texts)) or {}
    if "path" in given:
        given["field"] = field
    return resolve_path(Corpus(**given), Path.cwd()), None


def _lines(found: Inspection, tokens: int | None) -> Iterator[str]:
    from models.safe_text.terminal import line

    characters = sum(found.characters.values())
    documents = counted(found.documents, "document")
    yield line(f"{found.name}: {documents}, {found.bytes:,} bytes of UTF-8, {characters:,} characters")
    if found.files:
        yield line(f"  files          {found.files}")
    yield "  splits         " + ", ".join(f"{name} {count:,}" for name, count in found.characters.items() if count)
    if found.scripts:
        few = [f"{script} {share:.1%}" for script, share in found.scripts.items() if share >= 0.001][:6]
        yield "  letters        " + ", ".join(few)
    yield f"  longest line   {found.longest_line:,} characters"
    yield f"  there twice    {_twice(found)}"
    yield ""
    passes = "" if tokens is None else f"  {'reads it in ' + format(tokens, ',') + ' tokens':>30}"
    yield f"  {'tokenizer':<10} {'vocabulary':>10} {'tokens to train on':>19} {'bytes per token':>16}{passes}"
    for one in found.tokenizers:
        times = "" if tokens is None else f"  {format(tokens / max(one.train_tokens, 1), ',.2f') + ' times':>30}"
        yield (
            f"  {one.kind:<10} {one.vocabulary_size:>10,} {one.train_tokens:>19,} {one.bytes_per_token:>16.2f}{times}"
        )
    if found.is_sampled:
        yield "  (estimated from a sample of the text)"


def _twice(found: Inspection) -> str:
    twice = found.duplicates
    if not twice.count:
        return f"none of its {twice.of:,} {twice.units}"
    text = f"{twice.count:,} of {twice.of:,} {twice.units}, {twice.share:.1%} of the text"
    if twice.across_splits:
        text += f"; {twice.across_splits:,} held out as well as trained on: scores look better than they are"
    return text
