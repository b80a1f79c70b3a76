"""`t2i show RUN --what memory WORD...`: what is drawn of a word, and what is said of words that nobody knows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestration import memory_sheet
from orchestration.data.vocabulary import Vocabulary, save_vocabulary
from orchestration.errors import RequestError
from orchestration.home import Home
from orchestration.memory_sheet import FOUND, MemoryTable, Region, show_memory
from orchestration.stages import write_atomically
from orchestration.training.launch import EXPERIMENT_FILE
from tests.cli_support import T2i, runner
from tests.region_support import captioner, prepare
from tests.tiny import tiny_data

WORDS = Vocabulary(("<end>", "bird", "blue", "boat", "fish", "red"))
BOXES = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.5, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def write_memory(folder: Path, **changes: Tensor | None) -> Path:
    """A memory in which bird is like fish, less like red, and boat was never seen."""
    folder.mkdir(exist_ok=True)
    save_vocabulary(WORDS, folder / "vocabulary.json")
    angles = torch.tensor([0.0, 0.1, 3.0, 1.0, 0.2, 0.9])
    memory = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([0.0, 1, 5, 1, 9, 2])[:, None]
    kept = {
        "memory": memory,
        "pictures": torch.tensor([0, 3, 1, 0, 1, 1200]),
        "entry_words": torch.tensor([1, 1, 4, 5]),
        "entry_items": torch.tensor([7, 2, 5, 0]),
        "entry_places": torch.zeros(4, dtype=torch.int64),
        "entry_attention": torch.tensor([0.9, 0.4, 0.5, 0.75]),
        "entry_boxes": BOXES,
    }
    save_file(
        {name: value for name, value in (kept | changes).items() if value is not None}, folder / "memory.safetensors"
    )
    return folder


class TestTable:
    def test_words_have_their_places(self, tmp_path: Path) -> None:
        table = MemoryTable(write_memory(tmp_path / "memory"))
        assert [table.index(word) for word in WORDS.words[1:]] == [1, 2, 3, 4, 5]

    def test_the_nearest_are_by_cosine_among_those_seen(self, tmp_path: Path) -> None:
        table = MemoryTable(write_memory(tmp_path / "memory"))
        near = table.nearest(1, 5)
        assert [word for word, _ in near] == ["fish", "red", "blue"]
        assert [likeness for _, likeness in near] == pytest.approx(np.cos([0.1, 0.8, 2.9]), abs=1e-5)
        assert table.nearest(1, 1) == near[:1] and table.nearest(3, 5) == []

    def test_a_word_that_nobody_knows(self, tmp_path: Path) -> None:
        table = MemoryTable(write_memory(tmp_path / "memory"))
        with pytest.raises(RequestError, match="no word 'brid': near it are bird"):
            table.index("brid")
        with pytest.raises(RequestError, match="no word 'zzz': name one of the captions', such as red, bird"):
            table.index("zzz")
        with pytest.raises(RequestError, match="no word '<end>'"):  # padding is none
            table.index("<end>")

    def test_a_memory_of_another_vocabulary(self, tmp_path: Path) -> None:
        folder = write_memory(tmp_path / "memory", memory=torch.zeros(4, 2))
        with pytest.raises(
            RequestError, match="has 4 rows and the vocabulary beside it 6 words.*t2i stages drop memory"
        ):
            MemoryTable(folder)

    def test_a_damaged_one(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="cannot be read .*'pictures'.*t2i stages drop memory"):
            MemoryTable(write_memory(tmp_path / "memory", pictures=None))
        file = tmp_path / "memory" / "memory.safetensors"
        file.write_bytes(file.read_bytes()[:-3])
        with pytest.raises(RequestError, match="cannot be read"):
            MemoryTable(tmp_path / "memory")


class TestTiles:
    def test_the_box_is_drawn_and_the_region_cut(self) -> None:
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[16:, 8:] = (10, 200, 30)
        whole, cut = memory_sheet._tiles(picture, Region(3, (0.25, 0.5, 1.0, 1.0), 0.5))
        assert whole.pixels.shape == cut.pixels.shape == (256, 256, 3)
        edges = (whole.pixels == np.array(FOUND, np.uint8)).all(2)
        rows, columns = np.nonzero(edges)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (128, 255, 64, 255)
        # Twice as wide as high would be 24 x 16: white above and below, and of the picture nothing but the region.
        green = (cut.pixels == np.array([10, 200, 30], np.uint8)).all(2)
        assert green[128].all() and not green[0].any() and (cut.pixels[0] == 255).all()
        assert (whole.below, cut.below) == ("image 3", "attention 0.50")

    @pytest.mark.parametrize(
        "box", [(0.5, 0.5, 0.5, 0.5), (1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.01, 1.0), (0.99, 0, 1, 1)]
    )
    def test_boxes_of_no_size_are_shown_with_what_is_around(self, box: tuple[float, ...]) -> None:
        for side in (4, 32):
            whole, cut = memory_sheet._tiles(np.full((side, side, 3), 90, np.uint8), Region(1, box, 1.0))
            assert (whole.pixels == np.array(FOUND, np.uint8)).any() and (cut.pixels == 90).any()


class TestSheet:
    @pytest.fixture
    def show(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        folder = write_memory(tmp_path / "memory")
        made: tuple[Any, ...] = (folder, tiny_data(), captioner())
        monkeypatch.setattr(memory_sheet, "find_memory", lambda home, run, progress: made)

        def show(*words: str, **options: Any) -> Any:
            return show_memory(Home(tmp_path), "run", words, tmp_path / "sheet.png", **options)

        return show

    def test_what_is_known_of_words(self, show: Any, tmp_path: Path) -> None:
        bird, boat = show("Bird", "boat", "bird", nearest=2)
        data = tiny_data()
        assert (bird.word, bird.pictures, [word for word, _ in bird.nearest]) == ("bird", 3, ["fish", "red"])
        assert [(one.image_id, one.box) for one in bird.regions] == [
            (data.image_ids[7], tuple(BOXES[0].tolist())),
            (data.image_ids[2], tuple(BOXES[1].tolist())),
        ]
        assert [one.attention for one in bird.regions] == pytest.approx([0.9, 0.4])
        assert (boat.word, boat.pictures, boat.regions, boat.nearest) == ("boat", 0, [], [])
        with Image.open(tmp_path / "sheet.png") as sheet:
            colours = {colour for _, colour in sheet.convert("RGB").getcolors(10**6) or []}
            assert FOUND in colours and sheet.width > 8 * 128

    def test_no_more_than_asked_for(self, show: Any) -> None:
        [bird] = show("bird", regions=1, nearest=1)
        assert len(bird.regions) == len(bird.nearest) == 1 and bird.regions[0].attention == pytest.approx(0.9)

    def test_what_is_said_of_a_word(self, show: Any) -> None:
        bird, boat, red = show("bird", "boat", "red", nearest=1)
        assert memory_sheet._said(bird) == "bird: in 3 pictures; near fish 1.00"
        assert memory_sheet._said(boat).startswith("boat: never seen in a training picture")
        assert memory_sheet._said(red).startswith("red: in 1,200 pictures")

    def test_wrong_requests(self, show: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(RequestError, match="--what memory shows words: name some after the run"):
            show()
        with pytest.raises(RequestError, match="no word 'brid': near it are bird"):
            show("bird", "brid")
        write_memory(tmp_path / "memory", entry_items=torch.tensor([7, 24, 5, 0]))
        with pytest.raises(RequestError, match="is of other pictures than scenes"):
            show("bird")
        assert not (tmp_path / "sheet.png").exists()
        write_memory(tmp_path / "memory")
        (tmp_path / "sheet.png").mkdir()
        with pytest.raises(RequestError, match="cannot be written .*--out"):
            show("bird")


class TestCommand:
    @pytest.fixture(scope="class")
    def home(self, tmp_path_factory: pytest.TempPathFactory) -> Home:
        """With the run "built", whose memory was gathered, and two that have none."""
        home = Home(tmp_path_factory.mktemp("home"))
        prepare(captioner(), home).part("memory")
        other = captioner(**{"stages.memory.model.top_k": 7})
        plain = captioner(stages={"detector": captioner().stages["detector"]})
        for name, experiment in (("built", captioner()), ("later", other), ("plain", plain)):
            folder = home.runs / name
            folder.mkdir(parents=True)
            write_atomically(folder / EXPERIMENT_FILE, json.dumps(experiment.model_dump(mode="json")))
        return home

    @pytest.fixture
    def t2i(
        self, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> T2i:
        return runner(home.root, tmp_path / "here", monkeypatch, capsys)

    def test_it_draws_what_was_gathered(self, t2i: T2i, home: Home) -> None:
        [folder] = home.stages.glob("memory-*")
        pictures = load_file(folder / "memory.safetensors")["pictures"]
        word = json.loads((folder / "vocabulary.json").read_text())["words"][int(pictures.argmax())]
        ended = t2i("show", "built", word, "--what", "memory", "--regions", "2", "--json")
        [known] = ended.json["words"]
        assert Path(ended.json["png"]).read_bytes().startswith(b"\x89PNG")
        assert known["word"] == word and known["pictures"] == int(pictures.max()) == 20
        assert len(known["regions"]) == 2 and known["regions"][0].keys() == {"image_id", "box", "attention"}
        assert "drew 1 word to show.png" in t2i("show", str(home.runs / "built"), "--what", "memory", word).out

    def test_wrong_requests(self, t2i: T2i, tmp_path: Path) -> None:
        for words, parts in (
            (["built"], ["--what memory shows words"]),
            (["built", "zzzz"], ["no word 'zzzz'", "such as"]),
            (["plain", "a"], ["plain is built without a memory (attention_captioner)"]),
            (["later", "a"], ["the memory of later", "is not gathered yet", "t2i train tiny"]),
            (["nowhere", "a"], ["there is no run 'nowhere'", "built, later, plain"]),
        ):
            t2i("show", "--what", "memory", *words).refused(*parts)
        t2i("show", "built", "other").refused("--what samples shows one run, and 2 are named")
