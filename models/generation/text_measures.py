"""Measures how similar generated text is to human text: n-gram divergence, and the field's usual measures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

ORDERS = (1, 2, 3, 4)
"""The lengths of the n-grams of characters that are compared."""

COMPARED = 10
"""Texts that self-BLEU compares with each other; its work grows with the square of their number."""

MOST_PARTS = 10
"""Parts of the human texts that written texts are compared with; more would cost more than they tell."""

FILL = "\uffff"
"""Fills a text up that is too short to be compared: a code point that no text has."""


def text_divergence(written: Sequence[str], human: Sequence[str], length: int) -> float:
    """Returns how much further the n-grams of written texts are from people's than both are from themselves.

        mean over n of  mean J_n(W_i, H_j) - J_n(W_1, W_2) / 2 - mean J_n(H_i, H_j) / 2

    W_1 and W_2 are halves of the written texts (two at least), H_1, H_2, ... parts of the human texts, of which there
    must be no fewer; all are as many texts, cut to `length` characters (or filled up, which counts as a difference).
    J_n is the Jensen-Shannon divergence (Lin 1991), base 2, of their n-grams of characters, n in ORDERS. It lies in
    [-1, 1]; 0 is as different as human text is from itself.

    Two samples differ by chance alone, which the halves tell and the last terms take off, as in the energy distance
    of Szekely & Rizzo 2013. Because J_n is the square of a distance in a Hilbert space (Endres & Schindelin 2003), the
    expected value is lowest, and 0, for a model that writes as people do.
    """
    size = len(written) // 2
    parts = min(len(human) // size, MOST_PARTS)
    halves = [written[half : 2 * size : 2] for half in (0, 1)]
    samples = halves + [human[part : parts * size : parts] for part in range(parts)]
    fitted = [[text[:length].ljust(length, FILL) for text in sample] for sample in samples]
    return float(np.mean([_excess(counts) for counts in _ngram_counts(fitted, length)]))


def _excess(counts: npt.NDArray[np.float64]) -> float:
    """Of the counts of two written samples and of some human ones."""
    written, human = counts[:2], counts[2:]
    across = np.mean([jensen_shannon(one, other) for one in written for other in human])
    among = np.mean([jensen_shannon(one, other) for one, other in combinations(human, 2)])
    return float(across - jensen_shannon(*written) / 2 - among / 2)


def jensen_shannon(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float:
    """Returns the Jensen-Shannon divergence, 0 to 1, of two distributions given as counts of the same things."""
    left, right = left / left.sum(), right / right.sum()
    return _entropy((left + right) / 2) - (_entropy(left) + _entropy(right)) / 2


def _entropy(probabilities: npt.NDArray[np.float64]) -> float:
    some = probabilities[probabilities > 0]
    return float(-(some * np.log2(some)).sum())


def _ngram_counts(samples: Sequence[Sequence[str]], length: int) -> list[npt.NDArray[np.float64]]:
    """Returns for each order the counts (samples, n-grams) in texts of `length`; none reaches into the next text."""
    texts = "".join(text for sample in samples for text in sample).encode("utf-32-le", "surrogatepass")
    kinds, characters = np.unique(np.frombuffer(texts, "<u4"), return_inverse=True)
    characters = characters.reshape(-1, length)
    labels = np.repeat(np.arange(len(samples)), [len(sample) for sample in samples])
    grams, counts = np.zeros_like(characters), []
    for order in range(1, min(max(ORDERS), length) + 1):
        longer = grams[:, : length - order + 1] * len(kinds) + characters[:, order - 1 :]
        values, ranks = np.unique(longer, return_inverse=True)  # ranks stay small enough for the next order
        grams = ranks.reshape(longer.shape)
        where = labels[:, None] * len(values) + grams
        table = np.bincount(where.ravel(), minlength=len(samples) * len(values)).reshape(len(samples), -1)
        counts += [table.astype(np.float64)] if order in ORDERS else []
    return counts


def measures(written: Sequence[str], human: Sequence[str]) -> dict[str, float]:
    """Returns the usual measures of written texts; `human[k]` goes on from the same prompt as `written[k]`.

    In words, or in characters where a text has hardly any spaces:

    - bleu: corpus BLEU of each text against its human one, 0 to 100 (Papineni et al. 2002, by sacrebleu);
    - self_bleu: BLEU of each text against all others, 0 to 100: high is monotonous (Zhu et al. 2018);
    - rouge_l: F-measure of the longest common subsequence with the human text, 0 to 1 (Lin 2004, by rouge-score);
    - distinct_1, distinct_2, distinct_3: different n-grams over all n-grams, 0 to 1 (Li et al. 2016);
    - repetition: part of the 4-grams that stood in the same text before, 0 to 1 (Welleck et al. 2020);
    - zipf: exponent of the fall of frequency with rank, about 1 for words of human text (Holtzman et al. 2020).
    """
    spaced = _has_words(human)
    words = [text.split() if spaced else list(text) for text in written]
    return {
        **quality_and_diversity(written, human),
        "rouge_l": _rouge_l(words, [text.split() if spaced else list(text) for text in human]),
        **{f"distinct_{order}": _distinct(words, order) for order in (1, 2, 3)},
        "repetition": _repetition(words),
        "zipf": _zipf(words),
    }


def quality_and_diversity(written: Sequence[str], human: Sequence[str]) -> dict[str, float]:
    """Returns `bleu` and `self_bleu` of `measures`."""
    spaced = _has_words(human)
    some = written[:: max(1, len(written) // COMPARED)][:COMPARED]
    others = [[*some[:index], *some[index + 1 :]] for index in range(len(some))]
    return {"bleu": _bleu(written, [[text] for text in human], spaced), "self_bleu": _bleu(some, others, spaced)}


def _bleu(texts: Sequence[str], references: Sequence[Sequence[str]], spaced: bool) -> float:
    from sacrebleu.metrics import BLEU  # type: ignore[attr-defined]

    if not references or not references[0]:
        return 0.0
    bleu = BLEU(tokenize="13a" if spaced else "char", force=True)
    return float(bleu.corpus_score(list(texts), [list(column) for column in zip(*references, strict=True)]).score)


def _rouge_l(written: Sequence[list[str]], human: Sequence[list[str]]) -> float:
    from rouge_score import rouge_scorer, tokenizers

    class Given(tokenizers.Tokenizer):  # type: ignore[misc]
        """The texts come as words already, joined by a mark that none of them contains."""

        def tokenize(self, text: str) -> list[str]:
            return text.split(FILL) if text else []

    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Given())
    pairs = zip(human, written, strict=True)
    return float(np.mean([scorer.score(FILL.join(one), FILL.join(other))["rougeL"].fmeasure for one, other in pairs]))


def _has_words(texts: Sequence[str]) -> bool:
    """Whether there is a space in every 25 characters, as there is in all writing that has spaces between words."""
    joined = "".join(texts)
    return 25 * sum(map(str.isspace, joined)) >= len(joined)


def _ngrams(words: list[str], order: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(order)), strict=False))


def _distinct(texts: Sequence[list[str]], order: int) -> float:
    grams = [gram for words in texts for gram in _ngrams(words, order)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _repetition(texts: Sequence[list[str]], order: int = 4) -> float:
    grams = [_ngrams(words, order) for words in texts]
    total = sum(map(len, grams))
    return 1 - sum(len(set(each)) for each in grams) / total if total else 0.0


def _zipf(texts: Sequence[list[str]]) -> float:
    counts = sorted(Counter(word for words in texts for word in words).values(), reverse=True)
    if len(counts) < 2:
        return 0.0
    ranks = np.log(np.arange(1, len(counts) + 1))
    return float(-np.polyfit(ranks, np.log(counts), 1)[0])
