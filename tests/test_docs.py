"""The pages are true: every file, flag, key, table and link that they name exists."""

import importlib
import importlib.metadata
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import launch
from framework import config
from framework.experiment import load
from tests.documentation import PAGES, ROOT, blocks, commands, prose, read, saved

LANGUAGES = {"", "bash", "python", "json", "text", "yaml"}


# Beside those that `launch.py --help` lists: its own, and what TensorBoard, pip, Docker and benchmarks take.
FURTHER_FLAGS = {
    "addresses",
    "batching_parameters_file",
    "before",
    "clock",
    "data",
    "devices",
    "enable_batching",
    "exports",
    "gpus",
    "help",
    "help_config",
    "json",
    "logdir",
    "model",
    "minutes",
    "model_base_path",
    "model_config_file",
    "model_name",
    "modes",
    "monitoring_config_file",
    "lengths",
    "no-deps",
    "nodes",
    "ntasks-per-node",
    "only",
    "others",
    "peers",
    "pieces",
    "plot",
    "precisions",
    "profile",
    "quick",
    "rates",
    "rows",
    "repeats",
    "repetitions",
    "rest_api_port",
    "rm",
    "run",
    "set",
    "sentences",
    "sizes",
    "starts",
    "steps",
    "tf_xla_auto_jit",
    "tf_xla_cpu_global_jit",
    "tf_xla_min_cluster_size",
    "tf_xla_ops_to_cluster",
    "tf_xla_persistent_cache_directory",
    "updates",
    "variant",
    "words",
    "workloads",
    "workers",
}
FILE_SUFFIXES = {".json", ".jsonl", ".md", ".png", ".py", ".svg", ".tflite", ".toml", ".txt"}


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_of_a_known_kind(page: str) -> None:
    for block in blocks(page):
        place = f"{page}:{block.line}"
        assert block.language in LANGUAGES, f"{place}: '{block.language}' is not one of {sorted(LANGUAGES)}"
        if block.file:
            assert block.language == "python" and block.file.endswith(".py"), f"{place}: {block.info}"
            assert not (ROOT / block.file).exists(), f"{place}: {block.file} is a file of the project already"


@pytest.mark.parametrize("page", PAGES)
def test_saved_experiments_have_valid_configs(page: str, tmp_path: Path) -> None:
    for block in saved(page):
        path = tmp_path / Path(block.file).name
        path.write_text(block.text + "\n")
        config.finalize(load.load(str(path)).get_config())


# ---- What the prose names ----


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run that was exported twice."""
    from framework.modes import train
    from framework.run import build as runs
    from framework.run import exporting

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    settings = {"log.every": "20 steps", "train.compile": "auto"}
    built = runs.build(str(ROOT / "tests" / "tiny.py"), settings, folder)
    built.files = {"vocabulary.json": "{}"}  # as `make_files` returns them
    assert train.main(built, []) == 0
    exporting.export_run(built)
    return folder


def spans(page: str) -> Iterator[tuple[str, str]]:
    """(place, text) of all code spans of the prose, and of the words of the bash blocks."""
    text = prose(page)
    for match in re.finditer(r"`([^`]+)`", text):
        yield f"{page}:{text.count(chr(10), 0, match.start()) + 1}", " ".join(match[1].split())
    for line, command in commands(page):
        yield f"{page}:{line}", command


def config_keys() -> set[str]:
    """All keys of the framework and of the experiments, those of the pages included."""
    files = sorted((ROOT / "experiments").glob("*.py"))
    made = [importlib.import_module(f"experiments.{file.stem}").get_config("") for file in files]
    keys = {key for one in made for key in config.flatten(one)}
    for page in PAGES:
        for block in saved(page):
            keys |= set(re.findall(r"^ +config\.([a-z_0-9.]+) = ", block.text, re.MULTILINE))
    return keys


def modules() -> dict[str, str]:
    """{name of a framework module: its text}."""
    texts: dict[str, str] = {}
    for path in (ROOT / "framework").rglob("*.py"):
        texts[path.stem] = texts.get(path.stem, "") + path.read_text()
    return texts


def test_flags_and_modes_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["launch.py", "--help"]) == 0
    own = set(re.findall(r"^ +--(\w+)", capsys.readouterr().out, re.MULTILINE))
    modes = {path.stem for path in (ROOT / "framework" / "modes").glob("[a-z]*.py")}
    keys, unknown = config_keys(), []
    for page in PAGES:
        for place, text in spans(page):
            for flag in re.findall(r"(?<![\w-])--(?:no(?=config\.))?([a-z][\w.-]*)", text):
                key = flag.removeprefix("config.")
                is_known = key in keys | {"KEY"} if flag.startswith("config.") else flag in own | FURTHER_FLAGS
                unknown += [] if is_known else [f"{place}: --{flag}"]
            unknown += [f"{place}: --mode={mode}" for mode in re.findall(r"--mode=(\w+)", text) if mode not in modes]
    assert unknown == []


def test_config_keys_and_module_members_exist() -> None:
    import tf_keras as keras

    keys, texts, unknown = config_keys(), modules(), []
    texts["data"] += read("framework/data/__init__.py")
    texts["model"] = " ".join(dir(keras.Model))  # a section of the config and the name of a variable
    sections = {key.partition(".")[0] for key in keys}
    for page in PAGES:
        for place, text in spans(page):
            match = re.fullmatch(r"([a-z_]+)\.([a-z_0-9.]+)(=.*|\(.*)?", text)
            if not match or Path(match[2]).suffix in FILE_SUFFIXES or f".{match[2]}" in FILE_SUFFIXES:
                continue
            first, rest = match[1], match[2]
            is_member = re.search(rf"\b{rest.rpartition('.')[2]}\b", texts.get(first, ""))
            if (first in sections or first in texts) and f"{first}.{rest}" not in keys and not is_member:
                unknown.append(f"{place}: {text}")
    assert unknown == []


def test_make_targets_and_variables_exist() -> None:
    makefile = read("Makefile")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z]+) \?=", makefile, re.MULTILINE))
    unknown = []
    for page in PAGES:
        for place, text in spans(page):
            if text.startswith("make "):
                words = shlex.split(text)[1:]
                unknown += [f"{place}: {word}" for word in words if "=" not in word and word not in targets]
                unknown += [f"{place}: {word}" for word in words if "=" in word and word.split("=")[0] not in variables]
    assert unknown == []


def test_files_exist(run_folder: Path) -> None:
    missing = []
    for page in PAGES:
        places = [ROOT, (ROOT / page).parent, run_folder]
        own = {block.file for block in saved(page)}
        for place, text in spans(page):
            for word in re.split(r"[\s=,:'\"()\[\]{}]+", text):
                if is_file_name(word) and word not in own and not exists(word, places, run_folder):
                    missing.append(f"{place}: {word}")
    assert missing == []


def is_file_name(word: str) -> bool:
    """Whether a word is meant as a file or folder of the project or of a run: 'launch.py', 'exports/<hook>/'."""
    if not re.fullmatch(r"[\w.<][\w.\-/<>*…]*", word) or re.match(r"[A-Z]+\b(?!\.md)", word):
        return False
    has_suffix = Path(word).suffix in FILE_SUFFIXES and Path(word).stem != ""
    return has_suffix or ("/" in word and (word.endswith("/") or (ROOT / word.split("/")[0]).is_dir()))


def exists(word: str, places: list[Path], run_folder: Path) -> bool:
    parts = word.rstrip("/").split("/")
    if parts[0] == "runs":
        return len(parts) < 3 or exists("/".join(parts[2:]), [run_folder], run_folder)
    pattern = re.sub(r"<[^>]*>|…", "*", word.rstrip("/"))
    return any(next(place.glob(pattern), None) for place in places) or any(run_folder.rglob(Path(pattern).name))


def test_links_and_pictures_exist() -> None:
    broken = []
    for page in PAGES:
        text = prose(page)
        for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
            path, _, anchor = (target[0] or target[1]).partition("#")
            if path.startswith(("http://", "https://")):
                continue
            linked = (ROOT / page).parent / path if path else ROOT / page
            if not linked.exists() or (anchor and anchor not in anchors(linked)):
                broken.append(f"{page}: {path}#{anchor}".rstrip("#"))
    assert broken == []


def anchors(path: Path) -> set[str]:
    """Of the headings, as they are made from their text by code hosts."""
    headings = re.findall(r"^#+ (.+)$", prose(str(path.relative_to(ROOT))), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ---- Tables and numbers ----


def table(page: str, heading: str) -> list[list[str]]:
    """Cells of the rows of the first table below a heading, without the table's own head."""
    section = re.split(rf"^#+ {re.escape(heading)}$", read(page), maxsplit=1, flags=re.MULTILINE)[1]
    rows = re.findall(r"^\|(.*)\|$", re.split(r"^#+ ", section, maxsplit=1, flags=re.MULTILINE)[0], re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in rows[2:]]


@pytest.mark.parametrize("page", ["BUILD.md", "framework/ENGINE.md"])
def test_to_change_x_edit_y_names_what_is_there(page: str) -> None:
    functions = read("framework/experiment/returns.py")
    rows = table(page, "To change X, edit Y")
    wrong = []
    for row in rows:
        words = re.findall(r"`([^`]+)`", " ".join(row[1:]))
        files = [word for word in words if (ROOT / word).is_file()]
        text = functions + "".join(read(file) for file in files)
        names = [re.sub(r"\(.*\)", "", word).split(".")[-1] for word in words if "/" not in word and "*" not in word]
        wrong += [f"{row[0]}: {name} is in none of {files}" for name in names if not re.search(rf"\b{name}\b", text)]
        if not any(word.startswith("tests/") for word in re.findall(r"`([^`]+)`", row[2])):
            wrong.append(f"{row[0]}: no test to look at")
    assert len(rows) >= 20
    assert wrong == []


def test_re_implementations_are_there_each_with_a_measurement_and_an_end() -> None:
    rows = table("framework/NOTES.md", "Re-implementations made for speed")
    for ours, original, measured, end in rows:
        words = re.findall(r"`([^`]+)`", ours)
        text = "".join(read(word) for word in words if "/" in word)
        missing = [name for name in words if "/" not in name and not re.search(rf"\b{name.split('.')[-1]}\b", text)]
        assert missing == [], ours
        assert original and end, ours
        assert re.search(r"\d|not measured|the row", measured), ours
    assert len(rows) >= 12


def pins() -> dict[str, str]:
    text = "".join(read(file.name) for file in sorted(ROOT.glob("requirements*.txt")))
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    text += "\n".join(pin for pins in extras.values() for pin in pins)
    return dict(re.findall(r"^([\w-]+)(?:\[[\w,-]+\])?==([\w.]+)", text, re.MULTILINE))


def test_dependencies_are_those_pinned_each_with_a_reason() -> None:
    rows = table("BUILD.md", "Dependencies")
    assert {package: version for package, version, _ in rows} == pins()
    assert all(len(reason.split()) > 0 for _, _, reason in rows)


@pytest.mark.parametrize("page", PAGES)
def test_versions_are_those_pinned(page: str) -> None:
    wrong = [
        f"{name}=={version}"
        for name, version in re.findall(r"([a-z][\w-]+)(?:\[[\w-]+\])?==(\d[\w.]*)", read(page))
        if pins().get(name) != version
    ]
    assert wrong == []


def test_gpu_numbers_are_those_of_the_installed_tensorflow() -> None:
    import tensorflow as tf

    page = read("framework/distribute/README.md")
    wheels = dict(re.findall(r"wheels? `(nvidia-[\w-]+)` (\S+)", page))
    required = dict(
        re.findall(r"^(nvidia-[\w-]+?)([<>=][^;]*); extra == \"and-cuda\"", "\n".join(requirements()), re.MULTILINE)
    )
    assert len(wheels) >= 4
    assert wheels == {name: required.get(name) for name in wheels}

    classifiers = importlib.metadata.metadata("tensorflow").get_all("Classifier") or []
    pythons = [text.rpartition(" ")[2] for text in classifiers if re.fullmatch(r".*Python :: 3\.\d+", text)]
    assert f"| Python | {', '.join(pythons)} |" in page

    built = tf.sysconfig.get_build_info()
    if built["is_cuda_build"]:
        *older, newest = built["cuda_compute_capabilities"]
        assert f"| built with {built['cuda_version']};" in page
        assert f"| built with {built['cudnn_version']};" in page
        assert f"compiled for {', '.join(older)}, and {newest}," in page


def requirements() -> list[str]:
    return importlib.metadata.requires("tensorflow") or []
