"""Work over items in blocks: what is done is kept and not done again, and the bytes depend on nothing but the items."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file
from safetensors.torch import save_model

from models.contract import TextFeatures
from models.encoders.text import TextEncoder
from orchestration import mapping
from orchestration.data import features as features_module
from orchestration.data.features import CaptionIndex, open_caption_features, write_caption_features
from orchestration.data.shard_tasks import TaskDied
from orchestration.data.vocabulary import Vocabulary
from orchestration.data.word_encoder import describe_part, open_word_encoder, reopening
from orchestration.errors import RequestError, RunError
from orchestration.home import Home
from orchestration.mapping import join_blocks, map_blocks, read_block
from orchestration.preparation import Preparation
from orchestration.recipes import get_recipe
from orchestration.stages import quiet
from orchestration.training.state import build_nets
from tests.tiny import small_pretrained_nets, tiny_experiment, tiny_given
from tests.tiny_inputs import TINY_DIM, write_tiny_bert

COUNT, BLOCK = 11, 4


class Squares:
    """Item i to its square, and to i rows of i: blocks of different shapes. Each block is written down in `log`."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __call__(self, items: range) -> dict[str, NDArray[Any]]:
        with self.log.open("a") as log:
            log.write(f"{items.start}\n")
        own = np.array(items)
        return {"square": own.astype(np.float32) ** 2, "rows": np.repeat(own, own)[:, None].astype(np.int64)}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def run(folder: Path, log: Path, **options: Any) -> list[Path]:
    given: dict[str, Any] = {"count": COUNT, "block": BLOCK, "make_worker": partial(Squares, log), "progress": quiet}
    return map_blocks(folder, **{**given, **options})


def computed(log: Path) -> list[int]:
    """The first items of the blocks computed since this was last asked."""
    found = [int(line) for line in log.read_text().split()] if log.exists() else []
    log.unlink(missing_ok=True)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class TestBlocks:
    def test_each_has_its_items(self, tmp_path: Path, log: Path) -> None:
        told: list[tuple[str, int, int]] = []
        files = run(tmp_path / "a", log, progress=lambda *step: told.append(step), what="squares")
        assert [file.name for file in files] == [f"block-00000{index}.safetensors" for index in range(3)]
        assert [read_block(file)["square"].tolist() for file in files] == [
            [0, 1, 4, 9],
            [16, 25, 36, 49],
            [64, 81, 100],
        ]
        assert computed(log) == [0, 4, 8]
        assert told == [("squares", done, 11) for done in (0, 4, 8, 11)]

    def test_nothing_to_do(self, tmp_path: Path, log: Path) -> None:
        assert run(tmp_path / "a", log, count=0) == [] and not log.exists()

    @settings(max_examples=40, deadline=None)
    @given(count=st.integers(1, 9), block=st.integers(1, 10), lost=st.sets(st.integers(0, 8)))
    def test_any_blocks_in_any_order_are_the_whole(
        self, tmp_path_factory: pytest.TempPathFactory, count: int, block: int, lost: set[int]
    ) -> None:
        folder = tmp_path_factory.mktemp("blocks")
        log = folder / "log"
        files = run(folder / "a", log, count=count, block=block)
        before = contents(folder / "a")
        for index in lost:
            (folder / "a" / f"block-{index:06d}.safetensors").unlink(missing_ok=True)
        assert run(folder / "a", log, count=count, block=block) == files
        assert contents(folder / "a") == before
        for name, whole in Squares(log)(range(count)).items():
            join_blocks(files, name, folder / "joined.npy")
            np.save(folder / "direct.npy", whole)
            assert (folder / "joined.npy").read_bytes() == (folder / "direct.npy").read_bytes()

    def test_an_error_leaves_whole_blocks_and_the_next_run_goes_on(self, tmp_path: Path, log: Path) -> None:
        run(tmp_path / "whole", log)
        for error in (KeyboardInterrupt(), RequestError("no"), RunError("never"), ValueError("odd")):
            folder = tmp_path / type(error).__name__
            computed(log)

            def make(error: BaseException = error) -> mapping.Worker:
                squares = Squares(log)

                def work(items: range) -> dict[str, NDArray[Any]]:
                    if items.start == 8:
                        raise error
                    return squares(items)

                return work

            with pytest.raises(type(error)) as raised:
                run(folder, log, make_worker=make)
            assert raised.value is error
            assert sorted(contents(folder)) == ["block-000000.safetensors", "block-000001.safetensors"]
            assert computed(log) == [0, 4]
            run(folder, log)
            assert computed(log) == [8] and contents(folder) == contents(tmp_path / "whole")

    @pytest.mark.parametrize("damage", ["gone", "empty", "cut", "a bit", "another's", "no words of its own", "a list"])
    def test_a_damaged_block_is_computed_anew(self, tmp_path: Path, log: Path, damage: str) -> None:
        files = run(tmp_path / "a", log)
        before, file, whole = contents(tmp_path / "a"), files[1], files[1].read_bytes()
        computed(log)
        match damage:
            case "gone":
                file.unlink()
            case "empty":
                file.write_bytes(b"")
            case "cut":
                file.write_bytes(whole[:-1])
            case "a bit":
                file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            case "another's":
                file.write_bytes(files[0].read_bytes())
            case "no words of its own":
                save_file(read_block(file), file)
            case "a list":
                save_file(read_block(file), file, {"block": "[1]"})
        if damage != "another's":
            with pytest.raises(
                RequestError, match=r"^block .*-000001\.safetensors cannot be read \(.+\): delete it and"
            ):
                read_block(file)
        run(tmp_path / "a", log)
        assert computed(log) == [4] and contents(tmp_path / "a") == before

    def test_what_other_work_left_is_not_taken(self, tmp_path: Path, log: Path) -> None:
        folder = tmp_path / "a"
        run(folder, log, block=2)
        (folder / ".block-000000.safetensors-0123abcd").write_text("half")
        computed(log)
        run(folder, log)
        assert computed(log) == [0, 4, 8] and len(contents(folder)) == 3
        run(folder, log, identity="another net")
        assert computed(log) == [0, 4, 8]
        run(folder, log, identity="another net")
        assert computed(log) == []

    def test_one_thread_computes(self, tmp_path: Path, log: Path) -> None:
        threads: list[int] = []

        def work(items: range) -> dict[str, NDArray[Any]]:
            threads.append(torch.get_num_threads())
            return {"item": np.array(items)}

        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            run(tmp_path / "a", log, make_worker=lambda: work)
            assert threads == [1, 1, 1] and torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)

    def test_a_kill_before_the_end_of_a_block_leaves_none(
        self, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def killed(self: Path, target: Path) -> Path:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "a", log)
        assert contents(tmp_path / "a") == {}

    def test_this_process_has_its_own_way_to_a_worker(self, tmp_path: Path, log: Path) -> None:
        run(tmp_path / "a", log, make_worker=lambda: pytest.fail("not here"), here=partial(Squares, log))
        assert computed(log) == [0, 4, 8]


class TestProcesses:
    @pytest.fixture
    def started(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """How many cores each Ray cluster was wanted to have; nothing is started."""
        found: list[int] = []

        @contextmanager
        def cluster(minimum_cpus: int) -> Iterator[None]:
            found.append(minimum_cpus)
            yield

        monkeypatch.setattr(mapping, "ray_cluster", cluster)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: 4)
        return found

    @pytest.mark.parametrize(
        ("missing", "workers", "free", "address", "processes"),
        [
            (20, None, [None], "", 1),  # sooner done than Ray starts
            (21, None, [None, 4], "", 4),
            (21, 1, [None], "", 1),
            (21, 3, [None, 4], "", 3),
            (8, None, [4], "", 1),  # Ray runs already
            (9, None, [4, 4], "", 4),
            (9, None, [16, 16], "", 9),
            (99, None, [1], "", 1),  # and is busy
            (99, 8, [0], "", 1),
            (21, None, [None, 64], "far:1", 21),
            (21, None, [None, 0], "far:1", 1),  # seen once it is joined
            (20, None, [None], "far:1", 1),
        ],
    )
    def test_how_many(
        self,
        started: list[int],
        monkeypatch: pytest.MonkeyPatch,
        missing: int,
        workers: int | None,
        free: list[int | None],
        address: str,
        processes: int,
    ) -> None:
        asked = iter(free)
        monkeypatch.setattr(mapping, "free_cores", lambda: next(asked))
        if address:
            monkeypatch.setenv("RAY_ADDRESS", address)
        with mapping._processes(missing, workers) as found:
            assert found == processes
        assert len(started) == len(free) - 1 and list(asked) == []

    def test_one_core_starts_nothing_unless_told(self, started: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
        with mapping._processes(99, None) as found:
            assert found == 1 and not started
        answers = iter([None, 2])
        monkeypatch.setattr(mapping, "free_cores", lambda: next(answers))
        with mapping._processes(99, 2) as found:
            assert found == 2 and started == [2]

    def dying(self, after: Sequence[int], sizes: list[int]) -> Callable[..., None]:
        """A `run_in_actors` that does so many pieces before a process dies, then the next number of them."""
        left = list(after)

        def run_in_actors(make_task: Any, count: int, workers: int, failed: Any, heard: Any) -> None:
            task = make_task()
            sizes.append(workers)
            stop = left.pop(0) if left else count
            for place in range(min(stop, count)):
                heard(place, task(place))
            if stop < count:
                raise TaskDied("The actor died")

        return run_in_actors

    def test_dead_workers_are_replaced(
        self, tmp_path: Path, log: Path, started: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes: list[int] = []
        monkeypatch.setattr(mapping, "FEW", 0)
        answers = iter([None, 2, 2, 1, 1, None])
        monkeypatch.setattr(mapping, "free_cores", lambda: next(answers))
        monkeypatch.setattr(mapping, "run_in_actors", self.dying([0, 2, 0], sizes))
        told: list[int] = []
        run(tmp_path / "a", log, workers=2, progress=lambda what, done, total: told.append(done))
        assert computed(log) == [0, 4, 8] and sizes == [2, 2, 1, 1]
        assert told == [0, 4, 8, 11]
        run(tmp_path / "b", log, workers=1)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    @pytest.mark.parametrize("after", [[1, 0, 0, 0], [20, 20, 20, 20, 0, 0, 7]])
    def test_work_that_kills_is_given_up(
        self, tmp_path: Path, log: Path, started: list[int], monkeypatch: pytest.MonkeyPatch, after: list[int]
    ) -> None:
        monkeypatch.setattr(mapping, "FEW", 0)
        answers = iter([None, *[2] * 9])
        monkeypatch.setattr(mapping, "free_cores", lambda: next(answers))
        monkeypatch.setattr(mapping, "run_in_actors", self.dying(after, []))
        with pytest.raises(RunError) as raised:
            run(tmp_path / "a", log, workers=2, count=99, block=1, what="squares")
        assert str(raised.value) == (
            f"squares failed in {tmp_path / 'a'} (a task died 4 times, which a lack of memory can cause; Ray says The "
            "actor died); run the same command again: it goes on where it stopped."
        )
        assert len(contents(tmp_path / "a")) == sum(after)


class Letters:
    """A text encoder: a word is a letter, its feature the code and the length of the text."""

    digest, dim = "letters", 2

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, texts: Sequence[str]) -> TextFeatures:
        self.read += texts
        lengths = torch.tensor([len(text) for text in texts])
        words = torch.full((len(texts), int(lengths.max()) + 1, 2), torch.nan)
        for place, text in enumerate(texts):
            words[place, : len(text)] = torch.tensor([[ord(letter) % 999, len(text)] for letter in text])
        return TextFeatures(words, lengths, lengths[:, None].float().expand(-1, 2) / 3)


def caption_index(texts: Sequence[str]) -> CaptionIndex:
    ids = np.arange(len(texts))
    return CaptionIndex(ids, ids, np.arange(len(texts) + 1), tuple(texts))


class TestCaptionFeatures:
    TEXTS = (*(f"{number:b}" * (1 + number % 3) for number in range(11, 0, -1)), "1", "\ud83d")

    @pytest.fixture(autouse=True)
    def small_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(features_module, "BLOCK", 4)
        monkeypatch.setattr(features_module, "ENCODE_BATCH", 2)

    def test_a_repeat_goes_on_and_leaves_the_same_bytes(self, tmp_path: Path) -> None:
        whole, folder, index = tmp_path / "whole", tmp_path / "begun", caption_index(self.TEXTS)
        whole.mkdir()
        folder.mkdir()
        encoder = Letters()
        write_caption_features(index, encoder, whole, quiet)
        assert sorted(contents(whole)) == ["offsets.npy", "rows.npy", "sentence.npy", "words.npy"]
        distinct = encoder.read
        assert sorted(distinct) == sorted(set(self.TEXTS)) and [*map(len, distinct)] == sorted(map(len, distinct))

        def stop(what: str, done: int, total: int) -> None:
            if done == 8:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_caption_features(index, Letters(), folder, stop)
        (folder / ".words.npy-0123abcd").write_text("half")
        again = Letters()
        write_caption_features(index, again, folder, quiet)
        assert again.read == distinct[8:]
        assert contents(folder) == contents(whole)

        opened = open_caption_features(folder)
        assert isinstance(opened.words, np.memmap) and isinstance(opened.sentence, np.memmap)
        taken = opened.take(np.arange(len(self.TEXTS)))
        for place, text in enumerate(self.TEXTS):
            assert taken.words[place, : taken.lengths[place], 0].tolist() == [ord(letter) % 999 for letter in text]

    def test_blocks_of_another_encoder_are_not_taken(self, tmp_path: Path) -> None:
        def stop(what: str, done: int, total: int) -> None:
            if done == 8:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_caption_features(caption_index(self.TEXTS), Letters(), tmp_path, stop)
        other = Letters()
        other.digest = "other letters"
        write_caption_features(caption_index(self.TEXTS), other, tmp_path, quiet)
        assert len(other.read) == len(set(self.TEXTS))

    def test_another_encoder_on_another_machine_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"^the text encoder on \S+ is not the one that the command was started"):
            features_module._open_worker(tmp_path / "texts.arrow", 4, Letters, "another digest")
        assert features_module._open_worker(tmp_path / "texts.arrow", 4, Letters, "letters").block == 4

    @pytest.mark.parametrize("trained", [False, True])
    def test_another_process_opens_the_same_encoder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: bool
    ) -> None:
        monkeypatch.chdir(tmp_path)
        experiment = get_recipe("xmcgan_scenes32").replace({"text.name": "bert", "model.text_dim": TINY_DIM})
        encoder: Any = TextEncoder(
            experiment.text.model_copy(update={"name": str(write_tiny_bert(Path("bert")))}), Path()
        )
        if trained:
            encoder = open_word_encoder(write_part(Path("part")))
            experiment = experiment.replace({"model.text_dim": encoder.dim})
        reopen = reopening(Preparation(experiment, Home(Path("home")), encoder=encoder).encoder, Path("home"))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
        assert reopen is not None
        opened = reopen()
        assert opened is not encoder and opened.digest == encoder.digest
        texts = ["a red bird", "a boat"]
        assert torch.equal(opened(texts).words, encoder(texts).words)


def write_part(folder: Path) -> Path:
    """A matcher that reads captions, as training it leaves it."""
    vocabulary, experiment = Vocabulary(("<end>", "a", "bird", "boat", "red")), tiny_experiment("damsm")
    folder.mkdir()
    with small_pretrained_nets(), torch.random.fork_rng(devices=[]):
        nets = build_nets(experiment, replace(tiny_given(experiment), vocabulary_size=len(vocabulary)))
    for name in experiment.trainable.optimizers(experiment.model):
        save_model(nets[name], str(folder / f"{name}.safetensors"))
    describe_part(folder, "damsm", experiment.model.model_dump(mode="json"), vocabulary, 5)
    return folder
