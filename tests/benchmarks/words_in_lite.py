"""Error rates of the pronunciations that the exported LiteRT decoders of a g2p run write, greedily.

    python launch.py --config=experiments/g2p_transformer.py --workdir=runs/g2p
    python launch.py --config=experiments/g2p_transformer.py --workdir=runs/g2p --mode=export \
        --config.checkpoint.average=3 --formats=lite_decoder,lite_decoder_dynamic,lite_decoder_int8
    python tests/benchmarks/words_in_lite.py --workdir=runs/g2p

Each line has the error rates of phonemes and of words of a format on the test split, any pronunciation of a word right,
and the share of ids that are those of the float32 file, up to and with the end of its pronunciation.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from ml_collections import ConfigDict

from experiments import g2p_transformer as g2p
from framework import metrics
from framework.data import text
from framework.export import lite_runtime
from framework.run import stored_config

FORMATS = ("", "_float16", "_dynamic", "_int8", "_sparse")
BATCH = 64
SETTINGS = {"begin": text.BEGIN, "end": text.END, "length": g2p.PHONEMES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--words", type=int, default=0, help="of the test split; 0 = all")
    options = parser.parse_args()
    known = g2p.dictionary_of(ConfigDict(stored_config.read(Path(options.workdir)).values))
    words = known.splits["test"][: options.words or None]
    right = [[variant.split() for variant in known.variants[word]] for word in words]
    letters = np.zeros([len(words), g2p.LETTERS], np.int32)
    encoded, _ = known.letters.encode(words, end=True)
    letters[:, : encoded.shape[1]] = encoded
    float32 = None
    for kind in FORMATS:
        path = Path(options.workdir) / "exports" / f"lite_decoder{kind}" / "model.tflite"
        if not path.exists():
            continue
        decode = lite_runtime.load_decoder(str(path), **SETTINGS)["serving_default"]
        starts = range(0, len(words), BATCH)
        ids = np.concatenate([decode({"source": letters[start : start + BATCH]})["ids"] for start in starts])
        rates = metrics.error_rates([said.split() for said in known.phonemes.decode(ids)], right)
        float32 = ids if float32 is None else float32
        same = (ids == float32)[float32 != text.PADDING].mean()
        name = kind[1:] or "float32"
        print(
            f"{name:<8} {path.stat().st_size:>10,} bytes  phonemes {rates.token:.4f}  words {rates.sequence:.4f}"
            f"  same ids {same:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
