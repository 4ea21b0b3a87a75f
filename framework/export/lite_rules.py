"""LiteRT files in which rules say which operations are quantised, and how: int4, weights alone, one kind of operation.

    rules = [LiteRule("weights", bits=4, operation="FULLY_CONNECTED")]
    [Lite(signature), LiteByRules(signature, rules, name="lite_int4")]      # exports/lite/, exports/lite_int4/

The float32 file of `Lite` is quantised by ai-edge-quantizer (extra `quantize`). `Lite` with its formats, made by
TensorFlow's converter, needs no further package and is the first choice for int8.
"""

import contextlib
import dataclasses
import io
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from framework import extras
from framework.errors import UserError, near
from framework.export.base import Arrays, Call, Runtime, Signature
from framework.export.bounds import Bounds
from framework.export.lite import Lite, rows_of
from framework.export.lite_formats import FORMATS

# {kind: the bits of its weights}
KINDS = {"weights": (8, 4), "dynamic": (8, 4), "static": (8,)}
_NOWHERE = r"(?!)"  # matches no name


@dataclasses.dataclass(frozen=True)
class LiteRule:
    """Says how some operations of a .tflite file are quantised.

    | kind | weights | arithmetic |
    |---|---|---|
    | `weights` | int8 or int4 | float32: a file is smaller, not faster |
    | `dynamic` | int8 or int4 | int8 in products, by ranges found at each call |
    | `static` | int8 | int8 or int16, by ranges found in training examples |

    Weights have a scale for each output channel, the largest magnitude over 127 (int4: 7), and no zero point.

    Attributes:
      kind: one of the table.
      bits: of the weights.
      operation: kind of operation as LiteRT names it, such as FULLY_CONNECTED, CONV_2D or EMBEDDING_LOOKUP; '*' is
        every kind that can be quantised so.
      regex: operations whose output tensor has a name that begins with a match.
      activation_bits: of `static`, 8 or 16.

    Raises:
      UserError: there is no such kind, or it does not have these bits.
    """

    kind: str
    bits: int = 8
    operation: str = "*"
    regex: str = ".*"
    activation_bits: int = 8

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(
                f"LiteRule: there is no kind '{self.kind}'.{near(self.kind, KINDS)} Use one of {', '.join(KINDS)}."
            )
        if self.bits not in KINDS[self.kind]:
            allowed = " or ".join(map(str, KINDS[self.kind]))
            raise UserError(f"LiteRule('{self.kind}', bits={self.bits}): use bits={allowed}.")
        if self.activation_bits not in ((8, 16) if self.kind == "static" else (8,)):
            other = "8 or 16" if self.kind == "static" else "none: only kind 'static' has activation_bits"
            raise UserError(f"LiteRule('{self.kind}', activation_bits={self.activation_bits}): use {other}.")

    def add_to(self, quantizer: Any) -> None:
        """Adds the rule to a quantizer of ai-edge-quantizer."""
        if self.kind == "static":
            quantizer.add_static_config(self.regex, self.operation, self.activation_bits, self.bits)
        elif self.kind == "dynamic":
            quantizer.add_dynamic_config(self.regex, self.operation, self.bits)
        else:
            quantizer.add_weight_only_config(self.regex, self.operation, self.bits)


@dataclasses.dataclass(frozen=True)
class LiteByRules:
    """Exports what `Lite` exports, quantised by rules; of several rules for an operation the last one counts.

    Attributes:
      signature: as of `Lite`: a signature, or {name: Signature}.
      rules: at least one; each must change the file.
      name: name of the folder below exports/.
      bound: allowed error, see `ExportHook.bound`; None is that of `Lite` in 'dynamic' if all rules have 8 bits and
        none is static, else that of 'int8'.
      examples: number of training examples by which `static` finds the ranges of activations.

    Raises:
      UserError: there is no rule, or `examples` is below 1.
    """

    signature: Signature | Mapping[str, Signature]
    rules: Sequence[LiteRule]
    name: str
    bound: float | Bounds = None  # type: ignore[assignment]  # __post_init__ sets it
    examples: int = 200

    def __post_init__(self) -> None:
        if not self.rules:
            raise UserError(f"LiteByRules '{self.name}' has no rule. Give it e.g. [LiteRule('weights')].")
        is_mild = all(rule.bits == 8 and rule.kind != "static" for rule in self.rules)
        bound = FORMATS["dynamic" if is_mild else "int8"].bound if self.bound is None else self.bound
        object.__setattr__(self, "bound", bound)  # the way to set a field of a frozen dataclass
        self._lite  # noqa: B018  # checks `examples`

    @property
    def _lite(self) -> Lite:
        """Returns the hook of the float32 file."""
        return Lite(self.signature, name=self.name, examples=self.examples)

    @property
    def signatures(self) -> dict[str, Signature]:
        return self._lite.signatures

    @property
    def representative(self) -> int:
        """Returns how many examples of the training split `write` needs, see `ExportHook`."""
        return self.examples if any(rule.kind == "static" for rule in self.rules) else 0

    @property
    def runtime(self) -> Runtime:
        """Returns how a fresh process loads the artefact, see `ExportHook`."""
        return self._lite.runtime

    def arithmetic(self, model: Any) -> contextlib.AbstractContextManager[None]:
        """Returns the context in which the model computes as the artefact does, see `ExportHook`."""
        return self._lite.arithmetic(model)

    def target(self, folder: Path) -> Path:
        return self._lite.target(folder)

    def load(self, path: Path) -> dict[str, Call]:
        return self._lite.load(path)

    def write(self, model: Any, path: Path, examples: Iterable[Arrays] = ()) -> None:
        """Converts the signatures to float32, quantises the file and writes it.

        Raises:
          UserError: ai-edge-quantizer is not installed, a rule changes nothing, or what `Lite.write` refuses.
        """
        library = extras.load("ai_edge_quantizer.quantizer", "quantize")
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            file = Path(folder) / path.name
            self._lite.write(model, file)
            content = file.read_bytes()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors.*")  # it is meant
            path.write_bytes(self._by_rules(library, content, examples))

    def _by_rules(self, library: Any, content: bytes, examples: Iterable[Arrays]) -> bytes:
        """Returns the quantised file; raises UserError if a rule changes nothing."""
        ranges = self._ranges(library, content, [*examples]) if self.representative else None
        quantised = _quantised(library, content, self.rules, ranges)
        for place, rule in enumerate(self.rules):
            others = [*self.rules[:place], *self.rules[place + 1 :]]
            if _quantised(library, content, others, ranges) == quantised:
                raise UserError(
                    f"export '{self.name}': {rule} changes nothing: no operation that can be quantised so has this kind"
                    f" and name, or a later rule takes its place. The operations are {_operations(content)}."
                )
        return quantised

    def _ranges(self, library: Any, content: bytes, examples: Sequence[Arrays]) -> Any:
        """Returns the ranges of activations over batches of training examples."""
        quantizer = _quantizer(library, content, self.rules)
        # All rows at once, or the ranges would be moving averages over the rows, which cut off the largest values.
        batches = {}
        for name, signature in self.signatures.items():
            rows = [*rows_of(self.name, signature, examples, name)]
            batches[name] = [{key: np.concatenate([row[key] for row in rows]) for key in rows[0]}]
        with contextlib.redirect_stderr(io.StringIO()):  # its bar of progress
            return quantizer.calibrate(batches, num_threads=1)  # by one thread, for the same ranges again


def _quantizer(library: Any, content: bytes, rules: Sequence[LiteRule]) -> Any:
    """Returns a quantizer of ai-edge-quantizer with some rules.

    Raises:
      UserError: there is no such operation, or it has no such form.
    """
    quantizer = library.Quantizer(content)
    LiteRule("weights", regex=_NOWHERE).add_to(quantizer)  # it refuses to have none
    for rule in rules:
        try:
            rule.add_to(quantizer)
        except ValueError as error:
            raise UserError(f"{rule}: {error} The operations are {_operations(content)}.") from error
    return quantizer


def _quantised(library: Any, content: bytes, rules: Sequence[LiteRule], ranges: Any) -> bytes:
    return bytes(_quantizer(library, content, rules).quantize(ranges, enable_progress_report=False).quantized_model)


def _operations(content: bytes) -> str:
    """Returns the kinds of operations in a file with the number of each: '2 FULLY_CONNECTED, 1 SOFTMAX'."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    graphs = [model.Subgraphs(place) for place in range(model.SubgraphsLength())]
    kinds = []
    for graph in graphs:
        for place in range(graph.OperatorsLength()):
            code = model.OperatorCodes(graph.Operators(place).OpcodeIndex())
            kinds.append(names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())])
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
