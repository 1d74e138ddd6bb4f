# SPDX-License-Identifier: LGPL-2.1-or-later
"""What tests/gpu/run found out, as text for docs/gpu-results.md. It is in its file after each word: whoever ends the run,
what was known by then is there."""
import contextlib
import datetime
import os
import signal
import time
import traceback

from harness import Failed, Skip


@contextlib.contextmanager
def time_limit(seconds):
    """Ends what takes longer, by a Failed of whatever it is in."""
    def is_over(_number, _frame):
        raise Failed(f"not done after {seconds} s")
    before = signal.signal(signal.SIGALRM, is_over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answer_of(question):
    """A machine on which a proof has failed may not answer either."""
    try:
        with time_limit(60):
            return question()
    except Exception as error:
        return f"and that is all that is known: {error}"


class Proof:
    """One of them: how it ended, what was seen, and how long each phase took."""

    def __init__(self, name):
        self.name, self.outcome, self.seconds = name, "under way", 0.0
        self.seen, self.rows, self.failure = [], [], ""

    def say(self, text):
        self.seen.append(text)

    def took(self, what, seconds, mib):
        """`mib`: of device memory that came along; 0 where a rate says nothing."""
        rate = f"{mib * 1.048576 / 1000 / seconds:.2f}" if mib and seconds > 0 else ""
        self.rows.append(f"| {what} | {seconds:.3f} | {rate} |")

    @contextlib.contextmanager
    def timed(self, what, mib):
        began = time.monotonic()
        yield
        self.took(what, time.monotonic() - began, mib)

    def text(self):
        lines = [f"### {self.name}: {self.outcome}, {self.seconds:.1f} s", "", *[f"* {text}" for text in self.seen]]
        if self.rows:
            lines += ["", "| phase | seconds | GB/s of device memory |", "|---|---|---|", *self.rows]
        if self.failure:
            lines += ["", "```", self.failure.rstrip(), "```"]
        return "\n".join(lines + [""])


class Record:
    def __init__(self, kind, path):
        """`path`: None where standard output is all there is."""
        self.title, self.path = f"## {datetime.date.today()}: {kind}", path
        self.facts, self.proofs = [], []

    def say(self, text):
        print(f"* {text}", flush=True)
        self.facts.append(text)
        self.save()

    @contextlib.contextmanager
    def proof(self, name, seconds, evidence):
        """What goes wrong inside, or takes longer than that, is written down and goes no further. `evidence`: asked for
        what else tells why."""
        proof, began = Proof(name), time.monotonic()
        self.proofs.append(proof)
        self.save()
        try:
            with time_limit(seconds):
                yield proof
            proof.outcome = "proven"
        except Skip as skip:
            proof.outcome = f"not tried ({skip})"
        except Exception as error:  # whatever it is, the next ones are tried
            proof.outcome = "FAILED"
            proof.failure = str(error) if isinstance(error, Failed) else traceback.format_exc()
            proof.failure += f"\n{answer_of(evidence)}"
        except BaseException:
            proof.outcome = "BROKEN OFF"
            raise
        finally:
            proof.seconds = time.monotonic() - began
            self.save()
            print(proof.text(), flush=True)

    def failed(self):
        return any(proof.outcome in ("FAILED", "BROKEN OFF") for proof in self.proofs)

    def text(self):
        return "\n".join([self.title, "", *[f"* {fact}" for fact in self.facts], "", *[proof.text() for proof in self.proofs]])

    def save(self):
        if self.path is None:
            return
        aside = self.path.with_name(self.path.name + ".new")
        aside.write_text(self.text())
        os.replace(aside, self.path)
