"""Changes the C code in random places, one at a time, and runs the tests.

Of a mutant that compiles to another object file than the code as it is, and
than the mutants before it, one of three things is said:

noticed     a runner failed, twice, or hung
equivalent  test/mutants.txt says why no test could notice it
survived    all runners passed

Results are kept in the folder: a run that was stopped goes on where it was, and
one after new tests runs the survivors again.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

from universalmutator import mutator

RULES = ["universal.rules", "c_like.rules", "c.rules"]
GOAL = 0.95
FUNCTION = re.compile(r"^([a-z_][a-z0-9_]*)\(", re.IGNORECASE)


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    function: str
    before: str
    after: str

    def __str__(self):
        return (
            f"{self.file}:{self.line} in {self.function}\n"
            f"    - {self.before.strip()}\n    + {self.after.strip()}"
        )

    @property
    def change(self):
        """What names it in test/mutants.txt, whatever its line is now."""
        return (
            self.file,
            self.function,
            " ".join(self.before.split()),
            " ".join(self.after.split()),
        )

    def text(self, original):
        lines = original.splitlines(keepends=True)
        lines[self.line - 1] = self.after + "\n"
        return "".join(lines)


def mutants_of(base, file):
    """Lists the mutants of a file by line.

    A statement that is put behind a line stays in that line, as line numbers are
    in the object file.
    """
    lines = (base / file).read_text().splitlines(keepends=True)
    with redirect_stdout(StringIO()):
        found = mutator.mutants_regexp(
            lines, ruleFiles=RULES, ignorePatterns=[], ignoreStringOnly=True
        )
    functions, function = [], "-"
    for line in lines:
        if match := FUNCTION.match(line):
            function = match[1]
        functions.append(function)
        if line == "}\n":
            function = "-"
    by_line = {}
    for number, text, *_ in found:
        after = re.sub(r"\n\s*", " ", text.rstrip("\n"))
        mutant = Mutant(
            file, number, functions[number - 1], lines[number - 1].rstrip("\n"), after
        )
        by_line.setdefault((file, number), []).append(mutant)
    return by_line


def in_random_order(by_line, seed):
    """Goes through the lines, one mutant of each, until there is none left.

    So a table of numbers, of which there are hundreds of mutants, does not drive
    out the rest.
    """
    chance = random.Random(seed)
    rounds = {}
    for place in sorted(by_line):
        mutants = by_line[place]
        chance.shuffle(mutants)
        for turn, mutant in enumerate(mutants):
            rounds.setdefault(turn, []).append(mutant)
    for turn in sorted(rounds):
        chance.shuffle(rounds[turn])
        yield from rounds[turn]


def read_equivalents(path):
    """Reads entries of four lines: FILE FUNCTION, - before, + after, reason."""
    equivalents = {}
    entries = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE)
    for entry in re.split(r"\n\s*\n", entries.strip()):
        if not entry:
            continue
        place, before, after, *reason = entry.splitlines()
        if before[:2] != "- " or after[:2] != "+ " or not reason:
            sys.exit(f"{path}: not an entry:\n{entry}")
        file, function = place.split()
        change = (
            file,
            function,
            " ".join(before[2:].split()),
            " ".join(after[2:].split()),
        )
        equivalents[change] = " ".join(reason)
    return equivalents


class Hung(Exception):
    pass


class Worker:
    """Two copies of the sources, built as released and as tested."""

    def __init__(self, number, options):
        self.folder = options.folder / str(number)
        self.released = self.folder / "released"
        self.tested = self.folder / "tested"
        self.installed = self.folder / "install"
        self.options = options
        shutil.rmtree(self.folder, ignore_errors=True)
        for tree in (self.released, self.tested):
            shutil.copytree(options.folder / "base", tree)
        settings = options.settings.read_text()
        (self.folder / "server.conf").write_text(
            settings.replace(str(options.installed), str(self.installed))
        )

    def make(self, tree, *arguments, limit=600):
        """Runs make and says whether it succeeded, with what it printed."""
        flags = "-w" if tree == self.released else "-w -DUSE_ASSERT_CHECKING"
        process = subprocess.Popen(
            [
                "make",
                "-s",
                f"PG_CONFIG={self.options.pg_config}",
                "with_llvm=no",
                f"PG_CFLAGS={flags}",
                f"TEMP_CONFIG={self.folder / 'server.conf'}",
                *arguments,
            ],
            cwd=tree,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            self.end_servers()
            process.communicate()
            raise Hung from None
        if process.returncode != 0:
            self.end_servers()
        return process.returncode == 0, output

    def end_servers(self):
        """Ends what runs in a folder of this worker: servers that were left."""
        for kind in (signal.SIGQUIT, signal.SIGKILL):
            left = False
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if (process / "cwd").readlink().is_relative_to(self.folder):
                        os.kill(int(process.name), kind)
                        left = True
                except OSError:
                    continue
            if not left:
                return
            time.sleep(3)

    def object_of(self, file, text):
        """Compiles the text of a file as released; returns None if it cannot."""
        source = self.released / file
        target = source.with_suffix(".o")
        source.write_text(text)
        try:
            compiled, _ = self.make(
                self.released, str(target.relative_to(self.released))
            )
        except Hung:
            compiled = False
        if not compiled:
            return None
        bare = self.folder / "bare.o"
        subprocess.run(
            ["objcopy", "--strip-debug", "-R", ".comment", target, bare], check=True
        )
        return hashlib.sha256(bare.read_bytes()).hexdigest()

    def runners(self):
        names = [path.name for path in sorted((self.tested / "test/t").glob("*.pl"))]
        yield "unit", ["check-unit"]
        yield "regress", ["installcheck", "ISOLATION=", "TAP_TESTS="]
        yield "isolation", ["installcheck", "REGRESS=", "TAP_TESTS="]
        for name in names:
            yield (
                name,
                [
                    "installcheck",
                    "REGRESS=",
                    "ISOLATION=",
                    f"PROVE_TESTS=test/t/{name}",
                ],
            )

    def build(self):
        built, output = self.make(self.tested, "all")
        if built:
            shutil.rmtree(self.installed, ignore_errors=True)
            built, output = self.make(
                self.tested, "install", f"DESTDIR={self.installed}"
            )
        return built, output

    def measure(self):
        """Runs all on the code as it is; returns how long each runner takes."""
        built, output = self.build()
        if not built:
            sys.exit(output)
        seconds = {}
        for name, arguments in self.runners():
            began = time.monotonic()
            passed, output = self.make(self.tested, *arguments, limit=3600)
            if not passed:
                sys.exit(f"{output}\n{name} fails on the code as it is")
            seconds[name] = time.monotonic() - began
        return seconds

    def who_notices(self, mutant, seconds):
        """Returns the first runner that fails on a mutant, or None."""
        source = self.tested / mutant.file
        original = source.read_text()
        source.write_text(mutant.text(original))
        try:
            built, _ = self.build()
            if not built:
                return "the tests' build"
            for name, arguments in sorted(
                self.runners(), key=lambda runner: seconds[runner[0]]
            ):
                try:
                    if self.fails_twice(arguments, 60 + 10 * seconds[name]):
                        return name
                except Hung:
                    return f"{name} (hung)"
            return None
        finally:
            source.write_text(original)

    def fails_twice(self, arguments, limit):
        return not any(
            self.make(self.tested, *arguments, limit=limit)[0] for _ in range(2)
        )


def digest(folder, *patterns):
    result = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            if path.is_file():
                result.update(f"{path.relative_to(folder)}\0".encode())
                result.update(path.read_bytes())
    return result.hexdigest()


class Results:
    """What was found out before, by code and mutant."""

    def __init__(self, folder, base):
        self.path = folder / "results.jsonl"
        self.code = digest(base, "src/*", "*.sql", "Makefile")
        self.tests = digest(base, "sql/*", "expected/*", "test/**/*")
        self.lock = Lock()
        self.known = {}
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                result = json.loads(line)
                self.known[result["mutant"]] = result

    def key(self, mutant):
        text = "\0".join([self.code, mutant.file, str(mutant.line), mutant.after])
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, mutant):
        """Returns (known, runner); a survivor is known with the same tests."""
        result = self.known.get(self.key(mutant))
        if result is None or (
            result["runner"] is None and result["tests"] != self.tests
        ):
            return False, None
        return True, result["runner"]

    def add(self, mutant, runner):
        result = {"mutant": self.key(mutant), "runner": runner, "tests": self.tests}
        with self.lock, self.path.open("a") as file:
            file.write(json.dumps(result) + "\n")


def choose(workers, base, by_line, options, counts):
    """Returns the first mutants that differ from the code and from each other."""
    candidates = in_random_order(by_line, options.seed)
    chosen, objects = [], set()
    originals = {}
    free = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def compile_mutant(mutant):
        worker = free.get()
        try:
            original = (base / mutant.file).read_text()
            result = worker.object_of(mutant.file, mutant.text(original))
            (worker.released / mutant.file).write_text(original)
            return result
        finally:
            free.put(worker)

    for file in {file for file, _ in by_line}:
        originals[file] = workers[0].object_of(file, (base / file).read_text())
        objects.add((file, originals[file]))
    with ThreadPoolExecutor(len(workers)) as pool:
        while len(chosen) < options.count:
            batch = [m for m, _ in zip(candidates, range(8), strict=False)]
            if not batch:
                break
            for mutant, made in zip(
                batch, pool.map(compile_mutant, batch), strict=True
            ):
                if len(chosen) == options.count:
                    break
                if made is None:
                    counts["did not compile"] += 1
                elif made == originals[mutant.file]:
                    counts["compiled to the same"] += 1
                elif (mutant.file, made) in objects:
                    counts["compiled to the same as another"] += 1
                else:
                    objects.add((mutant.file, made))
                    chosen.append(mutant)
    return chosen


def main():
    parser = argparse.ArgumentParser(prog="./dev mutate")
    parser.add_argument("--folder", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--pg-config", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--installed", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("files", nargs="*")
    options = parser.parse_args()

    base = options.folder / "base"
    files = options.files or [
        str(path.relative_to(base)) for path in sorted(base.glob("src/*.c"))
    ]
    by_line = {}
    for file in files:
        by_line |= mutants_of(base, file)
    total = sum(map(len, by_line.values()))
    print(f"seed {options.seed}: {options.count} of {total} mutants", flush=True)

    workers = [Worker(number, options) for number in range(options.jobs)]
    counts = Counter()
    chosen = choose(workers, base, by_line, options, counts)
    equivalents = read_equivalents(base / "test/mutants.txt")
    results = Results(options.folder, base)
    left = []
    survivors = []
    for mutant in chosen:
        known, runner = results.get(mutant)
        if mutant.change in equivalents:
            counts["equivalent"] += 1
        elif not known:
            left.append(mutant)
        elif runner:
            counts["noticed"] += 1
        else:
            survivors.append(mutant)
    print(f"{len(chosen) - len(left)} are known, {len(left)} to be run", flush=True)

    if left:
        seconds = workers[0].measure()
        free = SimpleQueue()
        for worker in workers:
            free.put(worker)

        def run(mutant):
            worker = free.get()
            try:
                runner = worker.who_notices(mutant, seconds)
            finally:
                free.put(worker)
            results.add(mutant, runner)
            print(
                f"{f'noticed by {runner}' if runner else 'SURVIVED'}: {mutant}",
                flush=True,
            )
            return runner

        with ThreadPoolExecutor(options.jobs) as pool:
            for mutant, runner in zip(left, pool.map(run, left), strict=True):
                if runner:
                    counts["noticed"] += 1
                else:
                    survivors.append(mutant)

    print("===")
    for mutant in survivors:
        print(f"survived: {mutant}")
    real = counts["noticed"] + len(survivors)
    for name in (
        "did not compile",
        "compiled to the same",
        "compiled to the same as another",
    ):
        print(f"{counts[name]} {name}")
    print(
        f"seed {options.seed}: {len(chosen)} mutants, {counts['noticed']} noticed,"
        f" {counts['equivalent']} equivalent, {len(survivors)} survived"
    )
    sys.exit(counts["noticed"] < GOAL * real)


if __name__ == "__main__":
    main()
