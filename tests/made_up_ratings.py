"""Made-up ratings in the layout of ml-100k: users watch films of one kind, one after the other."""

import numpy as np


def write_ratings(folder, users=12, films=30, each=8):
    """Writes u.data, u.user and u.item; every user rates `each` films, of two genres, at increasing times."""
    draws = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for user in range(1, users + 1):
        for time, film in enumerate(draws.permutation(films)[:each] + 1):
            lines.append(f"{user}\t{film}\t{1 + (user + film) % 5}\t{1000 + time // 2}")  # two films in a second
    (folder / "u.data").write_text("\n".join(draws.permutation(lines)) + "\n")
    jobs = ("baker", "miner", "nurse")
    (folder / "u.user").write_text(
        "".join(f"{user}|{15 + user}|F|{jobs[user % 3]}|0\n" for user in range(1, users + 1))
    )
    flags = {0: "0|1" + "|0" * 17, 1: "0|0|1" + "|0" * 16, 2: "0" + "|0" * 18}  # the last has no genre
    (folder / "u.item").write_text(
        "".join(f"{film}|Film {film} ({1950 + film})|||x|{flags[film % 3]}\n" for film in range(1, films + 1))
    )
    return folder
