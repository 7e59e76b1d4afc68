"""Recipes: what is read, what is refused, and in which words."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

import pipelines.stages
from cluster.resources import Resources
from pipelines import config
from pipelines.recipe import yaml12
from pipelines.stage import Input, ShardStage, Stage, execution


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    kind: Literal["folder"] = "folder"
    path: str
    labels: bool = True


@dataclass(frozen=True, kw_only=True)
class ZipSource:
    kind: Literal["zip"] = "zip"
    path: str
    password: str | None = None


@dataclass(frozen=True, kw_only=True)
class Rates:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 100

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}; it must be above 0.")


@dataclass(frozen=True, kw_only=True)
class Gather(ShardStage):
    source: FolderSource | ZipSource
    size: int | None = None
    background: str = "#ffffff"
    split: dict[str, float] = field(default_factory=lambda: {"validation": 0.05, "test": 0.05})
    words: tuple[str, ...] = ()
    sources: tuple[FolderSource | ZipSource, ...] = ()

    def summary(self) -> str:
        return "images"

    def open(self, inputs: Any) -> Callable[..., Any]:
        raise AssertionError


@dataclass(frozen=True, kw_only=True)
class Learn(Stage):
    output = "snapshot"
    images: Annotated[str, Input("dataset", ("image",))]
    start: Annotated[str | None, Input("snapshot")] = None
    optimization: Rates = Rates(lr=2e-4, warmup=5)
    resources: Resources = execution(Resources(workers=1))

    def summary(self) -> str:
        return "a model"

    def run(self, session: Any) -> dict[str, Any]:
        raise AssertionError


@pytest.fixture(autouse=True)
def stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pipelines.stages, "STAGES", {"gather": f"{__name__}:Gather", "learn": f"{__name__}:Learn"}
    )


RECIPE = """\
name: tiny
stages:
  images: {stage: gather, source: {kind: folder, path: data/photos}, size: 32}
  model:
    stage: learn
    images: images
"""


def load(text: str, *flags: str, folder: Path = Path("/recipes")) -> config.Recipe:
    return config.parse(text, name="tiny.yaml", folder=folder, flags=flags)


def stage(text: str, *flags: str, name: str) -> Any:
    return load(text, *flags).stages[name]


def mistakes(text: str, *flags: str) -> list[str]:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load(text, *flags)
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("1_000", 1000),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("true", True),
        ("~", None),
        ("", None),
        ("1_000_", "1_000_"),
        ("e5", "e5"),
        ("<<", "<<"),
    ],
)
def test_plain_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    read = yaml12.read(f"a: {text}\n", "t").tree["a"]
    assert read == value
    assert type(read) is type(value)


def test_what_is_written_reads_back_to_the_same_tree() -> None:
    tree = {
        "a": ["no", "1e-4", "1_000", "~", "", "true", "a: b", "#c", "x\ny\n", "é"],
        "b": {"c": [1, 1.5, 1e-7, 1e20, float("inf"), None, True], "d": {"e": "1:30"}},
    }
    assert yaml12.read(yaml12.write(tree), "t").tree == tree


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "t:3: 'a' stands here twice, first in line 1"),
        ("a: !!python/object:os.system x\n", "t:1: tags such as"),
        ("a: &x [*x]\n", "t:1: an alias stands inside"),
        ("a: [1\n", "t:2: not YAML"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
    ],
)
def test_what_yaml_allows_and_recipes_do_not_is_told_with_its_line(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="^t:") as error:
        yaml12.read(text, "t")
    assert words in str(error.value)


def test_stages_come_with_their_defaults_and_paths_from_the_recipes_folder() -> None:
    recipe = load(RECIPE)
    images, model = recipe.stages["images"], recipe.stages["model"]
    assert images == Gather(source=FolderSource(path="/recipes/data/photos"), size=32)
    assert model == Learn(images="images")
    assert recipe.name == "tiny"


def test_the_resolved_text_loads_anywhere_to_the_same_stages(tmp_path: Path) -> None:
    recipe = load(RECIPE, "--model.optimization.lr", "5e-5", "--images.background=no")
    again = config.parse(recipe.text, name="record", folder=tmp_path)
    assert again.stages == recipe.stages
    assert again.text == recipe.text


def test_flags_win_and_their_paths_start_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = stage(RECIPE, "--images.source.path", "mine", "--images.size=64", name="images")
    assert images.source == FolderSource(path=str(tmp_path / "mine"))
    assert images.size == 64


@pytest.mark.parametrize("reference", ["s3://bucket/set", "models:/fox@champion"])
def test_urls_and_registry_names_are_left_as_they_are(reference: str) -> None:
    assert stage(RECIPE, "--model.images", reference, name="model").images == reference


def test_a_reference_with_a_slash_is_a_path() -> None:
    text = RECIPE.replace("images: images", "images: ../store/set")
    assert stage(text, name="model").images == "/store/set"


def test_flags_are_read_by_the_fields_type() -> None:
    images = stage(
        RECIPE,
        *("--images.background", "123"),
        *("--images.words", "[a, '1', 'b: c']"),
        *("--images.source.labels", "false"),
        *("--images.size", "none"),
        *("--images.max-rejects", "1"),
        name="images",
    )
    assert images.background == "123"
    assert images.words == ("a", "1", "b: c")
    assert images.source.labels is False
    assert images.size is None
    assert images.max_rejects == 1


def test_a_flag_switches_the_kind_and_drops_what_only_the_former_one_knew() -> None:
    text = RECIPE.replace("path: data/photos", "path: data/photos, labels: false")
    images = stage(text, "--images.source.kind", "zip", "--images.source.password", "1234", name="images")
    assert images.source == ZipSource(path="/recipes/data/photos", password="1234")


def test_a_branch_states_departures_from_the_stages_own_default() -> None:
    model = stage(RECIPE + "    optimization: {betas: [0.8, 0.9]}\n", name="model")
    assert model.optimization == Rates(lr=2e-4, warmup=5, betas=(0.8, 0.9))


def test_a_mapping_in_a_recipe_replaces_the_default_and_a_flag_adds_to_it() -> None:
    replaced = RECIPE.replace("size: 32", "split: {validation: 0.2}")
    assert stage(replaced, name="images").split == {"validation": 0.2}
    assert stage(RECIPE, "--images.split.validation", "0.2", name="images").split == {
        "validation": 0.2,
        "test": 0.05,
    }


def test_a_flag_reaches_into_a_list() -> None:
    text = RECIPE.replace("size: 32", "sources: [{kind: folder, path: a}, {kind: zip, path: b}]")
    images = stage(text, "--images.sources.1.password", "x", name="images")
    assert images.sources == (
        FolderSource(path="/recipes/a"),
        ZipSource(path="/recipes/b", password="x"),
    )


def test_stages_come_behind_what_they_read() -> None:
    text = (
        "stages:\n  model: {stage: learn, images: images}\n"
        + RECIPE.split("stages:\n")[1].split("  model")[0]
    )
    assert list(load(text).stages) == ["images", "model"]


def test_one_line_a_mistake_in_the_files_order() -> None:
    text = """\
name: tiny
stages:
  images:
    stage: gather
    source: {kind: foldr, path: x}
    sze: 32
    background: 7
  model: {stage: lern, images: images}
  other: {stage: learn, images: images, optimization: {lr: fast, betas: [0.9]}}
extra: 1
"""
    assert mistakes(text) == [
        "tiny.yaml:5: images.source.kind: there is no kind 'foldr'; did you mean 'folder'?",
        "tiny.yaml:6: images.sze: there is no such field; did you mean 'size'?",
        "tiny.yaml:7: images.background: must be text, not 7; put it in quotes.",
        "tiny.yaml:8: model.stage: there is no stage 'lern'; did you mean 'learn'?",
        'tiny.yaml:9: other.optimization.lr: must be a number, not "fast".',
        "tiny.yaml:9: other.optimization.betas.1: is needed and missing.",
        "tiny.yaml:10: extra: a recipe has no 'extra'; there are: name, stages.",
    ]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--images.sze", "3"), "--images.sze: there is no such field; did you mean 'size'?"),
        (("--images.size", "3.5"), "--images.size: must be a whole number, not 3.5."),
        (("--images.size", "big"), '--images.size: must be a whole number, not "big".'),
        (("--image.size", "3"), "--image.size: the recipe has no stage 'image'; did you mean 'images'?"),
        (("--images.size",), "--images.size: needs a value, as in --images.size VALUE."),
        (
            ("--model.optimization.lr", "-1"),
            "--model.optimization: lr is -1.0; it must be above 0.",
        ),
        (
            ("--images.source.kind", "idx"),
            "--images.source.kind: there is no kind 'idx'; there are: folder, zip.",
        ),
        (("--images.source.path.x", "1"), '--images.source.path: must be text, not {"x": 1}.'),
    ],
)
def test_a_flags_mistake_names_the_flag(flags: tuple[str, ...], line: str) -> None:
    assert mistakes(RECIPE, *flags) == [line]


def test_missing_fields_and_values_out_of_type_are_told_without_the_unions_other_members() -> None:
    text = RECIPE.replace("{kind: folder, path: data/photos}", "{kind: zip, password: 7}")
    assert mistakes(text) == [
        "tiny.yaml:3: images.source.path: is needed and missing.",
        "tiny.yaml:3: images.source.password: must be text, not 7; put it in quotes.",
    ]
    text = RECIPE.replace("{kind: folder, path: data/photos}", "{path: a}")
    assert mistakes(text) == ["tiny.yaml:3: images.source: needs a `kind`: one of folder, zip."]


def test_references_are_checked() -> None:
    assert mistakes(RECIPE.replace("images: images", "images: image")) == [
        "tiny.yaml:6: model.images: no stage is called 'image'; did you mean 'images'? "
        "A dataset or snapshot outside the recipe is written as a path with a /."
    ]
    assert mistakes(RECIPE + "  more: {stage: learn, images: model}\n") == [
        "tiny.yaml:7: more.images: takes a dataset, but 'model' (learn) makes a snapshot."
    ]


def test_a_circle_is_told() -> None:
    text = """\
stages:
  a: {stage: learn, images: /data, start: b}
  b: {stage: learn, images: /data, start: a}
"""
    assert mistakes(text) == ["tiny.yaml: stages wait for one another: a <- b <- a."]


@pytest.mark.parametrize("text", ["", "[]", "name: x", "stages: {}", "stages: 3"])
def test_a_recipe_without_stages_is_refused(text: str) -> None:
    assert len(mistakes(text)) == 1


def test_bare_names_are_shipped_recipes_and_paths_are_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "RECIPES", tmp_path)
    (tmp_path / "quickstart.yaml").write_text(
        "# latentmill run quickstart\n# ten minutes\n\n# not this\n" + RECIPE
    )
    recipe = config.load("quickstart")
    assert recipe.stages["images"] == Gather(source=FolderSource(path=str(tmp_path / "data/photos")), size=32)
    assert config.about(tmp_path / "quickstart.yaml") == ["latentmill run quickstart", "ten minutes"]
    with pytest.raises(ValueError, match="did you mean 'quickstart'"):
        config.load("quikstart")
    with pytest.raises(ValueError, match="there is no recipe missing.yaml; `latentmill init DIR`"):
        config.load("missing.yaml")


def test_reading_a_recipe_imports_nothing_heavy() -> None:
    import subprocess

    code = (
        "import sys, pipelines.config as c; "
        "[c.load(p) for p in c.shipped().values()]; "
        "print([m for m in ('torch', 'ray', 'mlflow', 'webdataset', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
