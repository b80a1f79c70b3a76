"""What the page computes by itself: word times, phrases, exact numbers, links, and where a refusal belongs."""

import json
import math
from typing import Any

from orchestration.narratives.narrative_text import read_narrative
from tests.page_support import BIGGEST, Open


def ask(page: Any, module: str, call: str, given: Any = None) -> Any:
    """What a function of the page's own modules gives."""
    script = f"async given => {{ const own = await import(new URL('page/{module}', location.href)); return {call}; }}"
    return page.evaluate(script, given)


WORD_TIMES = """(() => {
  let state = 7;
  const random = () => (state = (state * 48271) % 2147483647) / 2147483647;
  const wrong = [];
  for (let run = 0; run < 400; run += 1) {
    const some = ['a', 'Hund,', '樹', '...', 'unbreakable'];
    const words = Array.from({length: 1 + Math.floor(random() * 30)}, () => some[Math.floor(random() * 5)]);
    const turned = new Set(words.map((_, at) => at).filter(at => at > 0 && random() < 0.2));
    const phrases = own.phrasesOf(words, turned);
    const strokes = phrases.map(() => {
      if (random() < 0.3) return null;
      let t = random() * 3;
      const step = () => (t += random() < 0.2 ? 0 : random() * 0.05);
      const count = 1 + Math.floor(random() * 50);
      return Array.from({length: count}, () => ({x: random() * 1.2 - 0.1, y: random(), t: step()}));
    });
    const {said, traces, spans} = own.timed(words, phrases, strokes);
    const starts = said.map(one => one.start_time);
    const fine = [
      said.map(one => one.utterance).join(' ') === words.join(' '),
      said.every(one => one.start_time <= one.end_time && one.start_time >= 0),
      starts.every((start, at) => at === 0 || starts[at - 1] <= start),
      traces.length === strokes.filter(Boolean).length,
      traces.every(trace => trace.length >= 2 && trace.every((point, at) => at === 0 || trace[at - 1].t <= point.t)),
      traces.flat().every(({x, y}) => x >= 0 && x <= 1 && y >= 0 && y <= 1),
    ];
    let trace = 0;
    phrases.forEach((phrase, at) => {
      const own = said.slice(phrase.start, phrase.end);
      if (strokes[at]) {
        const points = traces[trace++];
        const [from, to] = [points[0].t, points[points.length - 1].t];
        fine.push(own[0].start_time === from, own[own.length - 1].end_time === to);
        fine.push(own.every(one => one.start_time >= from && one.end_time <= to));
      }
      fine.push(own[0].start_time === spans[at][0] && own[own.length - 1].end_time === spans[at][1]);
    });
    if (!fine.every(Boolean)) wrong.push([run, fine]);
  }
  return wrong;
})()"""


def test_word_times_stay_inside_their_strokes(opened: Open) -> None:
    with opened() as found:
        assert ask(found.page, "words.js", WORD_TIMES) == []
        many = ask(
            found.page,
            "words.js",
            "own.narrativeOf(['a', 'dog'], own.phrasesOf(['a', 'dog']), "
            "[Array.from({length: 30000}, (_, at) => ({x: 0.5, y: 0.5, t: at / 1000}))])",
        )
        (trace,) = many["traces"]
        assert len(trace) == 10_000 and trace[0]["t"] == 0 and math.isclose(trace[-1]["t"], 29.999)
        assert read_narrative(json.dumps(many)).caption == "a dog"


def test_phrases_split_at_marks_and_by_hand(opened: Open) -> None:
    with opened() as found:

        def phrases(text: str, turned: list[int]) -> list[str]:
            call = "own.phrasesOf(own.wordsOf(given[0]), new Set(given[1])).map(one => one.text)"
            return list(ask(found.page, "words.js", call, [text, turned]))

        assert phrases("", []) == [] and phrases("  \n ", [1]) == []
        assert phrases("a dog, a tree. “The sky.” Here", []) == ["a dog,", "a tree.", "“The sky.”", "Here"]
        assert phrases("a dog, a tree", [2]) == ["a dog, a tree"]
        assert phrases("a dog, a tree", [3]) == ["a dog,", "a", "tree"]
        assert phrases("3.5 dogs at 10:30", []) == ["3.5 dogs at 10:30"]
        moved = "[...own.movedGaps(new Set(given[0]), given[1], given[2])]"
        before = ["a", "dog", "and", "a", "tree"]
        assert ask(
            found.page, "words.js", moved, [[2, 4], before, ["a", "dog", "and", "one", "tall", "a", "tree"]]
        ) == [2, 6]
        assert ask(found.page, "words.js", moved, [[1, 2, 4], before, ["tree"]]) == []
        kept = "own.movedStrokes(given[0], given[1], given[2])"
        assert ask(found.page, "words.js", kept, [["A", "B", "C"], ["a", "b", "c"], ["a", "c"]]) == ["A", "C"]
        assert ask(found.page, "words.js", kept, [["A", "B"], ["a b", "c"], ["a", "b", "c"]]) == ["A", None, "B"]


def test_numbers_and_links_are_exact(opened: Open) -> None:
    with opened() as found:
        page = found.page
        text = (
            f'{{"seed": {BIGGEST}, "part": 0.12345678901234567890, "text": "{BIGGEST} \\"{BIGGEST}", "some": [1, -2]}}'
        )
        read = ask(page, "exact.js", "own.readJson(given)", text)
        assert read == {
            "seed": str(BIGGEST),
            "part": 0.12345678901234568,
            "text": f'{BIGGEST} "{BIGGEST}',
            "some": [1, -2],
        }
        long = json.dumps({"png": "A" * 8_000_000, "seed": BIGGEST})
        assert ask(page, "exact.js", "own.readJson(given).seed", long) == str(BIGGEST)
        request = {
            "type": "prompt",
            "prompt": "ü 船 🚢 \"<&>'",
            "model": "a@1",
            "seed": str(BIGGEST),
            "truncation": 0.5,
        }
        assert ask(page, "exact.js", "own.readLink(own.linkOf(given))", request) == request
        sent = json.loads(ask(page, "exact.js", "own.writeRequest(given)", request))
        assert sent == {**request, "seed": BIGGEST}
        seeds = ["7", " 007 ", "+5", "-1", "1e3", "", "0x10", "9" * 401]
        expected = ["7", "7", "5", "-1", None, None, None, None]
        assert ask(page, "exact.js", "given.map(own.readSeed)", seeds) == expected


def test_refusals_find_their_fields(opened: Open) -> None:
    cases: list[tuple[dict[str, str], dict[str, Any]]] = [
        ({"code": "wrong_field", "field": "images", "message": "m"}, {"field": "count"}),
        ({"code": "wrong_field", "field": "narrative", "message": "m"}, {"field": "words"}),
        ({"code": "wrong_field", "field": "graph.relations[3][1]", "message": "m"}, {"list": "relations", "place": 3}),
        ({"code": "wrong_prompt", "message": "objects[2] of the graph: no"}, {"list": "objects", "place": 2}),
        ({"code": "wrong_field", "message": "seed must be"}, {"field": "seed"}),
        ({"code": "wrong_input", "message": "painter draws a prompt"}, {"field": "words"}),
        ({"code": "unknown_model", "message": "m"}, {"field": "model"}),
        ({"code": "unauthorized", "message": "m"}, {"field": "token"}),
        ({"code": "timed_out", "message": "seed"}, {"field": "form"}),
        ({"code": "wrong_format", "field": "format", "message": "m"}, {"field": "form"}),
    ]
    with opened() as found:
        for refusal, expected in cases:
            assert ask(found.page, "fields.js", "own.fieldOf(given)", refusal) == {"field": "words", **expected}, (
                refusal
            )
