"""Imports the modules beside an experiment file: after installed ones, and for this experiment alone.

    own = OwnModules(path.parent)
    module = own.load('experiment_x', path)     # in it, `import helpers` is the helpers.py beside it
    own.files()                                 # {'helpers.py': (Path('…/helpers.py'), bytes)}: the imported files

Each load has its own module objects, read from the files as they are now. They leave `sys.modules` after each import,
so two experiments that have a helpers.py each do not share it. Nothing here imports TensorFlow.
"""

import builtins
import contextlib
import importlib
import linecache
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import logging

from framework.errors import UserError
from framework.experiment.user_code import is_own

_LOCK = threading.RLock()  # an import changes sys.modules until it ends


class OwnModules:
    """Loads an experiment file and the modules it imports from its folder.

    Args:
      folder: the folder of the modules.
      is_copy: whether the folder is a copy in a run folder, whose modules may be found elsewhere too.
    """

    def __init__(self, folder: Path, is_copy: bool = False) -> None:
        self._folder, self._is_copy = folder.resolve(), is_copy
        self._modules: dict[str, ModuleType] = {}  # by name; sys.modules does not keep them
        self._others: dict[str, ModuleType] = {}  # the user's modules from other folders
        self._read: dict[str, bytes] = {}
        self._importing: set[str] = set()
        self._late: set[str] | None = None

    def load(self, name: str, path: Path) -> ModuleType:
        """Executes a file as a module called `name`, and returns the module."""
        importlib.invalidate_caches()
        linecache.checkcache()
        file = str(path.resolve())
        spec = spec_from_loader(name, _Loader(self, name, file))
        assert spec is not None
        module = module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and type hints of the file look up their module
        assert spec.loader is not None
        spec.loader.exec_module(module)
        # Under the path as typed too, which leads elsewhere once the working folder is another or gone.
        self._read[str(path)] = self._read[file]
        return module

    def source(self, path: Path) -> bytes:
        """Returns the bytes of a file as they were when it was loaded."""
        if str(path) not in self._read:  # not loaded here: as it is at the first request
            self._read[str(path)] = path.read_bytes()
        return self._read[str(path)]

    def files(self) -> dict[str, tuple[Path, bytes]]:
        """Returns {'helpers.py': (path, content)} of each module imported before `close`.

        The keys are paths relative to the experiment's folder. A module of another folder of the user's has the key
        'package/module.py'.
        """
        files = {}
        for name, module in {**self._modules, **self._others}.items():
            if name not in (self._late or ()) and (file := getattr(module, "__file__", None)):
                path, package = Path(file), ["__init__"] if hasattr(module, "__path__") else []
                files[str(Path(*name.split("."), *package).with_suffix(path.suffix))] = (path, self.source(path))
        return dict(sorted(files.items()))

    def close(self) -> None:
        """Makes later imports of further modules a warning: the run folder has no copy of them."""
        self._late = self._late or set()

    def import_(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        """Imports a module for an import statement of the experiment, which calls this as `__import__`.

        Raises:
          UserError: the folder has a module of this name, and another one of this name is installed.
        """
        full = name if level == 0 else str((globals or {}).get("__package__") or "")
        top = full.partition(".")[0]
        known = {*self._modules, *self._others}
        if top in self._importing or not self._has(top):
            module = builtins.__import__(name, globals, locals, fromlist, level)
            self._note_other(name if level == 0 else "", fromlist)
        else:
            with self._visible(top):
                module = builtins.__import__(name, globals, locals, fromlist, level)
        if self._late is not None:
            self._warn_of_late(sorted({*self._modules, *self._others} - known))
        return module

    def _warn_of_late(self, names: Sequence[str]) -> None:
        for name in names:
            logging.warning(
                "module '%s' was imported after the run was built: the run folder has no copy of it, and a resumed run"
                " is not compared with it. Import it at the top of the experiment file.",
                name,
            )
        self._late = {*(self._late or ()), *names}

    def _has(self, top: str) -> bool:
        """Returns whether a module lies in the folder and nowhere else."""
        if top in self._modules:
            return True
        beside = PathFinder.find_spec(top, [str(self._folder)])
        if not top or top == __name__.partition(".")[0] or beside is None:
            return False
        elsewhere = _installed(top, self._folder)
        if elsewhere and not self._is_copy and beside.origin is not None:
            raise UserError(
                f"'{top}' is the name of {Path(beside.origin).name} beside the experiment and of a module that is"
                f" installed ({elsewhere}), which comes first. Give {beside.origin} another name."
            )
        return not elsewhere

    @contextlib.contextmanager
    def _visible(self, top: str) -> Iterator[None]:
        """Puts the own modules below a name into sys.modules for the time of the context, and finds missing ones."""

        def below() -> dict[str, ModuleType]:
            return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == top}

        with _LOCK:
            others = below()
            finder = _Finder(self, top, self._folder)
            for name in others:
                del sys.modules[name]
            own = {name: module for name, module in self._modules.items() if name.partition(".")[0] == top}
            sys.modules.update(own)
            sys.meta_path.insert(0, finder)
            self._importing.add(top)
            try:
                yield
            finally:
                self._importing.discard(top)
                sys.meta_path.remove(finder)
                for name, module in below().items():
                    self._modules[name] = module
                    del sys.modules[name]
                sys.modules.update(others)

    def _note_other(self, name: str, fromlist: Sequence[str]) -> None:
        parents = name.split(".")
        names = [".".join(parents[: length + 1]) for length in range(len(parents))]
        for full in (*names, *(f"{name}.{member}" for member in fromlist or ())):
            module = sys.modules.get(full)
            file = getattr(module, "__file__", None)
            if module is not None and file and is_own(file):
                self._others[full] = module

    def read(self, path: str, data: bytes) -> None:
        """Remembers the bytes of a file as they were when it was executed."""
        self._read[path] = data


class _Loader(SourceFileLoader):
    """Executes a file from its source: cached bytecode of the same second and size may belong to an older file."""

    def __init__(self, owner: OwnModules, name: str, path: str) -> None:
        super().__init__(name, path)
        self._owner = owner

    def get_code(self, fullname: str) -> Any:
        data = self.get_data(self.path)
        self._owner.read(self.path, data)
        return compile(data, self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        # Import statements of a module call its own builtins, at any time and in any thread.
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._owner.import_}
        super().exec_module(module)


class _Finder(MetaPathFinder):
    """Finds one module of the folder and, if it is a package, the modules below it."""

    def __init__(self, owner: OwnModules, top: str, folder: Path) -> None:
        self._owner, self._top, self._folder = owner, top, folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self._top:
            return None
        spec = PathFinder.find_spec(fullname, [str(self._folder)] if path is None else path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader) and spec.origin:
            spec.loader = _Loader(self._owner, fullname, spec.origin)
        return spec


def _installed(top: str, folder: Path) -> str:
    """Returns where a module of this name lies outside of the folder; '' if nowhere."""
    if top in sys.builtin_module_names or top in sys.stdlib_module_names:
        return "Python's own"
    specs = (finder.find_spec(top, None) for finder in sys.meta_path)
    spec = next((spec for spec in specs if spec is not None), None)
    if spec is None or spec.origin is None or folder in Path(spec.origin).resolve().parents:
        return ""
    return spec.origin
