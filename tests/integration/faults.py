#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nobody is worse off: a fault in each step of a checkpoint and of a restore, and what is left after it.

The steps are those that the program itself reports for a job that went well, so a new step is gone through
without a change here. The long version goes through all of them with each kind of fault.
"""
import concurrent.futures
import contextlib
import json
import pathlib
import queue
import re
import select
import subprocess
import time

import harness
from harness import SOAK, TOP, Failed, case, check, check_equal, check_in, wait_for

INSIDE = "/usr/local/lib/faults_inside.py"
PLACEHOLDER = "/usr/libexec/checkpointd/placeholder"
STORE, JOBS = "/var/lib/checkpointd", "/run/checkpointd/jobs"
NO_WAY_BACK = {"checkpoint": "units.stop.stop-unit", "snapshot": "checkpoint.mark-ready",
               "suspend": "units.suspend.end-tasks", "resume": "restore.run", "restore": "restore.run"}
SUBJECTS = 3
# A fault is told by what it says, or by the state of its job.
SAYS = {"fail": "injected fault", "enospc": "No space left", "kill": "", "hang": ""}


class Inside:
    """A process in the host that answers questions, one after the other (faults_inside.py)."""

    def __init__(self, host):
        self.process = subprocess.Popen(host.command("python3", INSIDE), stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def ask(self, request, timeout=180):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            self.process.kill()
            raise Failed(f"no answer to {request} in {timeout} s")
        answer = self.process.stdout.readline()
        check(answer, f"an answer to {request}")
        return json.loads(answer)

    def end(self):
        with contextlib.suppress(BrokenPipeError):  # its host may have gone before
            self.process.stdin.close()
        self.process.wait()


class Subject:
    """One counter under test: counter@NAME.service."""

    def __init__(self, host, name):
        self.inside = Inside(host)
        self.host, self.unit, self.folder = host, f"counter@{name}.service", f"/var/lib/counter-{name}"
        self.up = None     # what look() saw when it was last known to be well
        self.last = None   # what it said of itself, likewise
        self.images = {}

    # ---- asking

    def ask(self, **request):
        return self.inside.ask(request)

    def look(self, **request):
        return self.ask(look=self.unit, mark=self.folder, **request)

    def crctl(self, verb, *options, counter="counter"):
        """A job, and in the same breath a look at what it left."""
        reply = self.look(crctl=["--json", verb, self.unit, *options], **{counter: self.folder})
        try:
            reply["job"] = json.loads(reply["crctl"]["out"])
        except ValueError as error:
            raise Failed(f"crctl {verb} {options}: {reply['crctl']}") from error
        return reply

    def steps(self, job):
        return self.ask(steps=str(job["Id"]))["steps"]

    # ---- ways that go well

    def start(self):
        self.host.run("systemctl", "start", self.unit)
        wait_for(lambda: self.host.exists(f"{self.folder}/consumer.json"), f"{self.unit} reports")
        self.settle()

    def settle(self):
        """Remembers how it is when all is well; its mappings grow for a while after a start."""
        seen = self.look(counter=self.folder)
        for _ in range(50):
            again = self.look(counter=self.folder)
            if again["look"]["processes"] == seen["look"]["processes"]:
                break
            seen = again
        self.up, self.last, self.images = again["look"], again["counter"], again["look"]["images"]
        self.check_moves(again["counter"], "before")
        self.check_well(again["look"], "before")

    def checkpoint(self):
        reply = self.crctl("checkpoint", counter="counter_now")
        check_equal(reply["crctl"]["code"], 0, f"a checkpoint of {self.unit}: {reply['crctl']['err']}")
        self.last = reply["counter"]
        self.images = {reply["job"]["Image"].split("/")[1]: "ready"}
        self.check_down(reply["look"], "after a checkpoint")
        return reply["job"]

    def restore(self, when="restored"):
        reply = self.crctl("restore")
        check_equal(reply["crctl"]["code"], 0, f"{when}: a restore of {self.unit}: {reply['crctl']['err']}")
        self.images = {image: "consumed" for image in self.images}
        self.check_restored(reply, when)
        return reply["job"]

    # ---- what must hold

    def check_moves(self, now, when):
        """From inside the program: every thread moves, nothing was lost, nobody saw an EINTR."""
        state, consumer = now["state"], now["consumer"]
        check_equal(now["still"], [], f"{when}: parts of the counter that stand still")
        check(state["memory_intact"], f"{when}: memory", state)
        check_equal((consumer["lost"], consumer["repeated"]), (0, 0), f"{when}: items lost, repeated")
        check_equal((state["eintr"]["read"], state["eintr"]["deadline"]), (0, 0), f"{when}: visible EINTR")
        check(now["log_sound"], f"{when}: the log file has every number once", now["log"])

    def check_clean(self, look, when):
        """No trace of a job, whether the unit is up or down."""
        shown = look["unit"]
        check_equal((harness.without_gate(shown["DropInPaths"]), shown["NeedDaemonReload"]), ([], "no"), f"{when}: drop-ins of PID 1")
        check_equal(look["drop_ins"], [], f"{when}: drop-in files")
        check_equal(look["ours"], [], f"{when}: our processes")
        check_equal(look["images"], self.images, f"{when}: images")
        left = {job: state for job, state in look["jobs"].items() if state != {"ended": True, "undo": False}}
        check_equal(left, {}, f"{when}: jobs with something left to do")

    def check_well(self, look, when):
        """It runs: not frozen, not traced, and by /proc what it was."""
        self.check_clean(look, when)
        shown = look["unit"]
        check_equal((shown["ActiveState"], shown["SubState"], shown["Result"]), ("active", "running", "success"),
                    f"{when}: the unit")
        for key in ("MainPID", "NRestarts", "InvocationID"):
            check_equal(shown[key], self.up["unit"][key], f"{when}: {key}")
        check_equal(look["freeze"], "0", f"{when}: cgroup.freeze")
        check_equal(look["events"][-2:], ["frozen", "0"], f"{when}: cgroup.events")
        check_equal(look["copies"], self.up["copies"], f"{when}: processes of the program")
        for pid, process in look["processes"].items():
            for tid, thread in process["threads"].items():
                check_equal(thread["TracerPid"], "0", f"{when}: tracer of {tid}")
                check(thread["State"] in "SRD", f"{when}: state of {tid}", thread)
            self.check_same(process, self.up["processes"].get(pid), f"{when}: process {pid}")
        check_equal(look["pids"], self.up["pids"], f"{when}: processes in the cgroup")
        check_equal(look["reserved"], [], f"{when}: images whose PIDs are reserved")

    @staticmethod
    def check_same(now, before, when):
        check(before is not None, f"{when} is new")
        for key in ("maps", "code", "fds"):
            if now[key] != before[key] and key == "maps":
                changed = sorted(set(now[key]) ^ set(before[key]))
                raise Failed(f"{when}: mappings changed\n  " + "\n  ".join(changed))
            check_equal(now[key], before[key], f"{when}: {key}")
        check_equal(sorted(now["threads"]), sorted(before["threads"]), f"{when}: threads")
        for tid, thread in now["threads"].items():
            static = lambda t: {key: value for key, value in t.items() if key != "State"}
            check_equal(static(thread), static(before["threads"][tid]), f"{when}: status of thread {tid}")

    def check_untouched(self, reply, when):
        when = f"{self.unit}, {when}"
        self.check_well(reply["look"], when)
        self.check_moves(reply["counter"], when)
        self.check_goes_on(reply["counter"], when)

    def check_goes_on(self, now, when):
        """The same processes and threads, from the same number."""
        before, state = self.last["state"], now["state"]
        for key in ("pid", "consumer", "threads"):
            check_equal(state[key], before[key], f"{when}: {key}")
        # What it says of itself may be a second old.
        most = before["count"] + (state["monotonic_ns"] - before["monotonic_ns"]) / 1e8 + 10
        check(before["count"] <= state["count"] <= most,
              f"{when}: it counts on from {before['count']}, at most to {most:.0f}", state["count"])
        self.last = now

    def check_down(self, look, when, is_reserved=True):
        when = f"{self.unit}, {when}"
        self.check_clean(look, when)
        shown = look["unit"]
        check_equal((shown["ActiveState"], shown["SubState"], shown["Result"], shown["MainPID"]),
                    ("inactive", "dead", "success", "0"), f"{when}: the unit")
        check_equal((look["cgroup"], look["copies"]), (False, []), f"{when}: cgroup, processes")
        ready = [f"{image} suspended" for image, state in self.images.items() if state == "ready"]
        if is_reserved:
            check_equal(look["reserved"], ready, f"{when}: images whose PIDs are reserved")

    def check_restored(self, reply, when):
        """It runs on from its image; it is a new start for PID 1, and memory may be mapped in other pieces."""
        when = f"{self.unit}, {when}"
        self.check_moves(reply["counter"], when)
        self.check_goes_on(reply["counter"], when)
        check_equal(reply["look"]["unit"]["MainPID"], str(reply["counter"]["state"]["pid"]), f"{when}: main PID")
        self.settle()

    def check_in_namespace(self, reply, when):
        """It runs on from its image, for itself with its old PIDs, and for systemd with another."""
        when = f"{self.unit}, {when}"
        self.check_moves(reply["counter"], when)
        self.check_goes_on(reply["counter"], when)
        look, pid = reply["look"], reply["counter"]["state"]["pid"]
        check(look["unit"]["ActiveState"] == "active" and look["unit"]["MainPID"] != str(pid), f"{when}: the unit", look["unit"])
        check_equal([line.split()[1:] for line in look["ours"]], [["pid-init"]], f"{when}: the namespace's first process")
        check_equal(look["drop_ins"], [], f"{when}: drop-in files")

    # ---- faults

    def inject(self, verb, step, action, *options):
        """A hang lasts as long as the job may: little, but on a busy machine enough to come to its step."""
        fault = f"step={step},action={action}"
        down = verb == "restore"
        for limit in (("--timeout", "3s"), ("--timeout", "12s"), ("--timeout", "50s")) if action == "hang" else ((),):
            reply = self.crctl(verb, "--x-fault", fault, *limit, *options,
                               counter="counter_now" if down else "counter")
            if reply["job"].get("Phase") == step:
                break
        return reply

    def check_fault(self, reply, step, action, when):
        """The job ended by this fault at this step, and said so."""
        job = reply["job"]
        check_equal(job.get("Phase"), step, f"{when}: the step at which it ended ({job['ErrorMessage']})")
        check(reply["crctl"]["code"] != 0, f"{when}: crctl's exit code", reply["crctl"])
        check_in(SAYS[action], job["ErrorMessage"], f"{when}: what it says")
        check_equal(job["State"], "timeout" if action == "hang" else "failed", f"{when}: state of the job")

    def fault_in_checkpoint(self, step, action, is_late):
        """Leaves it running."""
        when = f"{action} at {step}"
        reply = self.inject("checkpoint", step, action)
        if not is_late:
            self.check_fault(reply, step, action, when)
            return self.check_untouched(reply, f"after {when}")
        # The unit has stopped: the image is whole, whatever the job says.
        # The older one, consumed, may still be there when nobody came to the last step.
        new = max(reply["look"]["images"])
        self.images = {image: "consumed" for image in reply["look"]["images"] if image in self.images}
        self.images[new] = "ready"
        self.last = reply["counter"]
        self.check_down(reply["look"], f"after {when}", is_reserved=False)
        self.restore(f"after {when}")

    def snapshot(self):
        reply = self.crctl("checkpoint", "--mode", "snapshot")
        check_equal(reply["crctl"]["code"], 0, f"a snapshot of {self.unit}: {reply['crctl']['err']}")
        self.images = {reply["job"]["Image"].split("/")[1]: "ready"}
        self.check_untouched(reply, "after a snapshot")
        return reply["job"]

    def fault_in_snapshot(self, step, action, is_late):
        """Leaves it running; an image there is only when it was ready before."""
        when = f"{action} at {step} of a snapshot"
        reply = self.inject("checkpoint", step, action, "--mode", "snapshot")
        if is_late:
            self.images = {image: self.images.get(image, "ready") for image in reply["look"]["images"]}
            check_equal(self.images[max(self.images)], "ready", f"after {when}: the newest image")
        else:
            self.check_fault(reply, step, action, when)
        self.check_untouched(reply, f"after {when}")

    def check_suspended(self, look, when):
        """Active as before, nothing in it but the placeholder."""
        when = f"{self.unit}, {when}"
        main = look["unit"]["MainPID"]
        check_equal((len(look["ours"]), look["pids"]), (1, [int(main)]), f"{when}: a placeholder is all there is")
        check(look["ours"][0].startswith(f"{main} {PLACEHOLDER} "), f"{when}: the placeholder", look["ours"])
        check_equal(look["copies"], [], f"{when}: processes of the program")
        self.check_clean({**look, "ours": []}, when)
        for key in ("ActiveState", "SubState", "Result", "NRestarts", "InvocationID"):
            check_equal(look["unit"][key], self.up["unit"][key], f"{when}: {key}")
        check_equal(look["freeze"], "0", f"{when}: cgroup.freeze")

    def suspend(self):
        reply = self.crctl("checkpoint", "--mode", "suspend", counter="counter_now")
        check_equal(reply["crctl"]["code"], 0, f"a suspension of {self.unit}: {reply['crctl']['err']}")
        self.last = reply["counter"]
        self.images = {reply["job"]["Image"].split("/")[1]: "ready"}
        self.check_suspended(reply["look"], "after a suspension")
        return reply["job"]

    def resume(self, when="resumed"):
        invocation = self.up["unit"]["InvocationID"]
        job = self.restore(when)
        check_equal(self.up["unit"]["InvocationID"], invocation, f"{when}: it is the same invocation")
        return job

    def fault_in_suspend(self, step, action, is_late):
        when = f"{action} at {step} of a suspension"
        reply = self.crctl("checkpoint", "--x-fault", f"step={step},action={action}", "--mode", "suspend",
                           counter="counter_now" if is_late else "counter")
        if not is_late:
            self.check_fault(reply, step, action, when)
            return self.check_untouched(reply, f"after {when}")
        self.images = {image: self.images.get(image, "ready") for image in reply["look"]["images"]}
        self.last = reply["counter"]
        self.check_suspended(reply["look"], f"after {when}")
        self.resume(f"after {when}")

    def fault_in_resume(self, step, action, is_late):
        when = f"{action} at {step} of a resumption"
        reply = self.inject("restore", step, action)
        if not is_late:
            self.check_fault(reply, step, action, when)
            return self.check_suspended(reply["look"], f"after {when}")
        invocation = self.up["unit"]["InvocationID"]
        self.images = {image: "consumed" for image in self.images}
        reply["counter"] = self.ask(counter=self.folder)["counter"]
        self.check_restored(reply, f"after {when}")
        return check_equal(self.up["unit"]["InvocationID"], invocation, f"after {when}: it is the same invocation")

    def fault_in_restore(self, step, action, is_late):
        """Found and left inactive with an image that is ready, unless `is_late`: then it runs."""
        when = f"{action} at {step}"
        reply = self.inject("restore", step, action)
        if not is_late:
            self.check_fault(reply, step, action, when)
            return self.check_down(reply["look"], f"after {when}")
        self.images = {image: "consumed" for image in self.images}
        reply["counter"] = self.ask(counter=self.folder)["counter"]
        return self.check_restored(reply, f"after {when}")


# A service of processes and threads in a user namespace, told of its checkpoints, in sessions and groups of their own, joined by sockets, that listens as well. It
# reports in the files and words of the counter, so the same questions can be asked of it.
RELAY = '''import json, os, select, socket, sys, threading, time
folder, port = sys.argv[1], 7801
def report(name, **words):
    with open(f"{folder}/{name}.new", "w") as file: json.dump(words, file)
    os.rename(f"{folder}/{name}.new", f"{folder}/{name}.json")
mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
def consume():
    mine.close()
    received = lost = repeated = 0
    while data := other.recv(100):
        number = int(data)
        lost, repeated = lost + max(number - received - 1, 0), repeated + (number <= received)
        received = number
        report("consumer", received=received, lost=lost, repeated=repeated)
    os._exit(0)
consumer = os.fork()
if consumer == 0:
    os.setsid()
    if os.fork() == 0: consume()  # its session's leader waits
    os.setpgid(0, 0) if os.getpgid(0) != os.getpid() else None
    mine.close(); other.close(); os.wait(); os._exit(0)
group = os.fork()
if group == 0:
    os.setpgid(0, 0)
    if os.fork() == 0:
        while True: time.sleep(0.3)
    os.wait()
tcp = socket.create_server(("127.0.0.1", port))
unix = socket.socket(socket.AF_UNIX); unix.bind(os.environ["RUNTIME_DIRECTORY"] + "/sock"); unix.listen()
told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); told.bind(os.environ["RUNTIME_DIRECTORY"] + "/told")
heard = {"before": 0, "after": 0}
for _ in range(3): threading.Thread(target=threading.Event().wait, daemon=True).start()
log = open(f"{folder}/counter.log", "a", buffering=1)
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
count = 0
while True:
    ready, _, _ = select.select([tcp, unix, told], [], [], 0.1)
    for listener in ready:
        if listener is told:
            text, fds, _, _ = socket.recv_fds(told, 4096, 1)
            if b"EVENT=before" in text: heard["before"] += 1
            else: heard["after"] = heard["before"]
            for fd in fds: os.close(fd)
            continue
        peer, _ = listener.accept()
        peer.sendall(str(count).encode()); peer.close()
    count += 1
    log.write(f"{count}\\n"); mine.send(str(count).encode())
    report("state", pid=os.getpid(), consumer=consumer, threads={"main": os.getpid()}, count=count, updates=count,
           expirations=count, sent=count, timer_signals=count, memory_intact=True,
           eintr={"read": 0, "deadline": 0}, monotonic_ns=time.monotonic_ns(), heard=heard)
'''
CALL = """import socket, sys
for family, address in ((socket.AF_INET, ("127.0.0.1", 7801)), (socket.AF_UNIX, "/run/relay/sock")):
    s = socket.socket(family); s.settimeout(60); s.connect(address); print(int(s.recv(100)))"""


class Relay(Subject):
    def __init__(self, host):
        super().__init__(host, "relay")
        self.unit, self.folder = "relay.service", "/var/lib/relay"
        host.write("/usr/local/lib/relay.py", RELAY)
        host.write("/etc/systemd/system/relay.service",
                   "[Service]\nType=notify\nExecStart=/usr/bin/python3 /usr/local/lib/relay.py /var/lib/relay\n"
                   "StateDirectory=relay\nRuntimeDirectory=relay\nPrivateTmp=yes\nPrivateUsers=yes\n"
                   "[X-Checkpointd]\nTellSocket=%t/relay/told\n")
        host.run("systemctl", "daemon-reload")

    def check_goes_on(self, now, when):
        super().check_goes_on(now, when)
        answers = [int(word) for word in self.host.run("python3", "-c", CALL).out.split()]
        check(len(answers) == 2 and min(answers) >= now["state"]["count"], f"{when}: both sockets answer", answers)
        heard = lambda: self.ask(counter=self.folder)["counter"]["state"]["heard"]
        wait_for(lambda: len(set(heard().values())) == 1, f"{when}: it is told what became of each attempt")


class Steps:
    """The steps of a job that went well, in the order in which it entered them."""

    def __init__(self, verb, names):
        self.verb, self.names = verb, list(dict.fromkeys(names))  # some are entered for each process
        check(NO_WAY_BACK[verb] in names, f"{verb}: {NO_WAY_BACK[verb]} is a step", names)
        self.last_early = self.names.index(NO_WAY_BACK[verb])

    def is_late(self, step):
        return self.names.index(step) > self.last_early


class Stage:
    """What the cases share: one host, its subjects, and the steps that were recorded on it."""

    def __init__(self, t):
        self.host = t.host()
        self.host.write(INSIDE, pathlib.Path(__file__).with_name("faults_inside.py").read_text("utf-8"))
        self.host.sh("mkdir -p /run/checkpointd; touch /run/checkpointd/allow-faults")
        self.subjects = {}
        self.recorded = {}
        self.other = None
        t.on_end(self.end)

    def end(self):
        for subject in [*self.subjects.values(), *(self.other or ())[:1]]:
            subject.inside.end()

    def subject(self, name):
        if name not in self.subjects:
            self.subjects[name] = Subject(self.host, name)
            self.subjects[name].start()
        return self.subjects[name]

    def steps(self, verb):
        if verb not in self.recorded:
            first = self.subject("1")
            self.recorded["checkpoint"] = Steps("checkpoint", first.steps(first.checkpoint()))
            self.recorded["restore"] = Steps("restore", first.steps(first.restore()))
        return self.recorded[verb]

    def steps_of_mode(self, name):
        """Of a snapshot, a suspension, or the way back from one (resume)."""
        if name not in self.recorded:
            first = self.subject("1")
            ways = ("snapshot",) if name == "snapshot" else ("suspend", "resume")
            for way in ways:
                self.recorded[way] = Steps(way, first.steps(getattr(first, way)()))
        return self.recorded[name]

    @contextlib.contextmanager
    def with_taken_pid(self, subject):
        """The subject is on disk, somebody else has a PID of its image, and the policy knows a way out."""
        self.host.write("/etc/checkpointd/policy.d/taken.yaml", f"units: {{{subject.unit}: {{pid-taken: namespace}}}}\n")
        self.host.run("crctl", "policy", "reload")
        try:
            self.host.run("systemctl", "stop", self.host.keeper_of(subject.checkpoint()["Image"]))
            with self.host.taken(subject.last["state"]["consumer"]):
                yield
        finally:
            self.host.sh("rm /etc/checkpointd/policy.d/taken.yaml; crctl policy reload")

    def steps_in_namespace(self):
        """Of a restore of a unit one of whose PIDs somebody else has. The unit is left stopped."""
        if "namespace" not in self.recorded:
            first = self.subject("1")
            with self.with_taken_pid(first):
                reply = first.crctl("restore")
                check_equal(reply["crctl"]["code"], 0, f"a restore in a namespace: {reply['crctl']['err']}")
                first.check_in_namespace(reply, "restored in a namespace")
                self.recorded["namespace"] = Steps("restore", first.steps(reply["job"]))
            self.start_over("1")
        return self.recorded["namespace"]

    def relay(self):
        """The other service and its steps."""
        if not self.other:
            relay = Relay(self.host)
            relay.start()
            down = Steps("checkpoint", relay.steps(relay.checkpoint()))
            up = Steps("restore", relay.steps(relay.restore()))
            self.other = relay, {"checkpoint": down, "restore": up}
            for way in ("suspend", "resume"):
                self.other[1][way] = Steps(way, relay.steps(getattr(relay, way)()))
        return self.other

    def share(self, items, work, width=SUBJECTS):
        """Gives each item to a free subject, in threads. All failures are told at once."""
        waiting, failures = queue.SimpleQueue(), []
        for item in items:
            waiting.put(item)

        def run(name):
            subject = self.subject(name)
            while not waiting.empty():
                try:
                    item = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    work(subject, item)
                except Failed as failure:
                    failures.append(str(failure))
                    print(f"        {failure}", flush=True)
                    self.start_over(name)
                    subject = self.subject(name)

        names = [str(number + 1) for number in range(width)]
        with concurrent.futures.ThreadPoolExecutor(width) as pool:
            for done in [pool.submit(run, name) for name in names]:
                done.result()
        check(not failures, f"{len(failures)} of {len(items)} went wrong:\n" + "\n".join(failures))

    def start_over(self, name):
        """After a failure: the next fault deserves a fresh subject."""
        subject = self.subjects.pop(name)
        subject.inside.end()
        self.host.run("sh", "-c", f"systemctl kill -s KILL {subject.unit}; systemctl stop {subject.unit}; "
                      f"systemctl reset-failed {subject.unit}; rm -rf {STORE}/{subject.unit} {subject.folder}/*; "
                      f"rm -rf /run/systemd/system/{subject.unit}.d; systemctl daemon-reload", check=False)


_stages = {}


def stage(t):
    if t not in _stages:
        _stages[t] = Stage(t)
    return _stages[t]


def crossed(steps, *actions):
    return [(step, action) for step in steps.names for action in actions]


@case
def every_step_of_a_checkpoint(t):
    at = stage(t)
    steps = at.steps("checkpoint")
    print(f"        {len(steps.names)} steps: {' '.join(steps.names)}", flush=True)
    actions = ("fail", "kill", "enospc") if SOAK else ("fail", "kill")

    def work(subject, item):
        subject.fault_in_checkpoint(*item, steps.is_late(item[0]))

    at.share(crossed(steps, *actions), work)
    for subject in at.subjects.values():
        subject.checkpoint()
        subject.restore("after all of them")


@case
def every_step_of_a_restore(t):
    """A subject stays down from step to step: that the next fault comes to its step shows what the last one left."""
    at = stage(t)
    steps = at.steps("restore")
    print(f"        {len(steps.names)} steps: {' '.join(steps.names)}", flush=True)

    def work(subject, step):
        for action in ("fail", "kill", "enospc") if SOAK else ("fail", "kill"):
            if subject.up:
                subject.checkpoint()
                subject.up = None
            subject.fault_in_restore(step, action, steps.is_late(step))
        if SOAK and not subject.up:
            subject.restore(f"at a second try, {step}")

    at.share(steps.names, work)
    for subject in at.subjects.values():
        if not subject.up:
            subject.restore("after all of them")


def actions_of_mode(step):
    """A failure takes the way of the journal, as a death does; three steps show it where time is short."""
    some = ("units.suspend.end-tasks", "units.resume.free-numbers", "restore.run")
    return ("fail", "kill") if SOAK or step in some else ("kill",)


@case
def every_step_of_a_snapshot(t):
    """What it shares with a checkpoint is gone through there; here is what comes with the unit going on."""
    at = stage(t)
    steps = at.steps_of_mode("snapshot")
    some = samples(steps, "checkpoint.fork", "checkpoint.memory", "checkpoint.go-on", "checkpoint.copies",
                   "checkpoint.commit", "checkpoint.mark-ready", "checkpoint.retention")
    items = [(step, action) for step in some for action in ("fail", "kill")]
    at.share(items, lambda subject, item: subject.fault_in_snapshot(*item, steps.is_late(item[0])))


@case
def every_step_of_a_suspension(t):
    at = stage(t)
    steps = at.steps_of_mode("suspend")
    own = [step for step in steps.names if step.startswith("units.suspend.")]
    some = samples(steps, "checkpoint.memory", *own, "checkpoint.mark-ready")
    items = [(step, action) for step in some for action in actions_of_mode(step)]
    at.share(items, lambda subject, item: subject.fault_in_suspend(*item, steps.is_late(item[0])))


@case
def every_step_of_a_resumption(t):
    at = stage(t)
    steps = at.steps_of_mode("resume")
    own = [step for step in steps.names if step.startswith("units.resume.")]
    some = samples(steps, *own, "restore.check", "restore.memory", "restore.registers", "restore.commit", "restore.run",
                   "restore.mark-consumed")

    def work(subject, step):
        for action in actions_of_mode(step):
            if subject.look()["look"]["copies"]:
                subject.suspend()
            subject.fault_in_resume(step, action, steps.is_late(step))
        if not steps.is_late(step):
            subject.resume(f"at a second try, {step}")

    at.share(some, work)


@case
def hang_in_a_step(t):
    """The worker hangs until the policy's time is over; the alarm ends it, the daemon undoes."""
    at = stage(t)
    down, up = at.steps("restore"), at.steps("checkpoint")
    some_up = ("checkpoint.seize", "checkpoint.ask", "checkpoint.memory", "units.stop.stop-unit",
               "checkpoint.mark-ready")
    some_down = ("units.stage.wait-helper", "restore.memory", "units.hand-over.main-pid", "restore.commit",
                 "units.hand-over.remove-drop-in")
    for steps, some in ((up, some_up), (down, some_down)):
        check(set(some) <= set(steps.names), f"{steps.verb}: the sample names steps that exist", steps.names)

    def work(subject, item):
        steps, step = item
        if steps.verb == "restore":
            subject.checkpoint()
            subject.fault_in_restore(step, "hang", steps.is_late(step))
            if not steps.is_late(step):
                subject.restore(f"after hang at {step}")
        else:
            subject.fault_in_checkpoint(step, "hang", steps.is_late(step))

    items = [(steps, step) for steps, some in ((up, some_up), (down, some_down))
             for step in (steps.names if SOAK else some)]
    at.share(items, work, 5)


@case
def store_on_a_full_disk(t):
    """Real ENOSPC: the store is a tmpfs that is too small, by bytes or by inodes."""
    at = stage(t)
    subject = at.subject("1")
    subject.checkpoint()
    subject.restore()
    kept, subject.images = subject.images, {}
    sizes = ["size=4k", "size=64k", "size=1m", "size=4m", "nr_inodes=2", "nr_inodes=4", "nr_inodes=12"]
    seen = set()
    for size in sizes:
        at.host.sh(f"mount -t tmpfs -o mode=700,{size} tmpfs {STORE}")
        try:
            reply = subject.crctl("checkpoint")
            check(reply["crctl"]["code"] != 0, f"{size}: a checkpoint cannot succeed", reply["job"])
            check_in("No space left", reply["job"]["ErrorMessage"], f"{size}: what it says")
            seen.add(reply["job"]["Phase"])
            subject.check_untouched(reply, f"after a full disk, {size}, at {reply['job']['Phase']}")
        finally:
            at.host.run("umount", STORE)
    check(len(seen) > 1, "disks get full in different steps", seen)
    subject.images = kept
    subject.checkpoint()
    subject.restore("after all full disks")


def worker_of(host, job):
    return host.main_pid(f"checkpointd-job-{job}.service")


def halt_at(subject, verb, step):
    """Starts a job and waits until its worker stands still at `step`: (job, PID of the worker)."""
    before = set(subject.look()["look"]["jobs"])
    subject.host.run("crctl", verb, subject.unit, "--no-wait", "--x-fault", f"step={step},action=stop")
    job = (set(subject.look()["look"]["jobs"]) - before).pop()
    return job, wait_halted(subject.host, job, step)


def wait_halted(host, job, step):
    def halted():
        pid = worker_of(host, job)
        return pid if pid and "State:\tT" in host.sh(f"cat /proc/{pid}/status 2>/dev/null || true").out else 0

    return wait_for(halted, f"the worker halts at {step}", interval=0.1)


def wait_ended(subject, job, when):
    wait_for(lambda: subject.look()["look"]["jobs"].get(job) in (None, {"ended": True, "undo": False}),
             f"{when}: job {job} ends", interval=0.2)


def samples(steps, *some):
    check(set(some) <= set(steps.names), f"{steps.verb}: the sample names steps that exist", steps.names)
    return steps.names if SOAK else some


def daemon_kill_items(at):
    up, down = at.steps("checkpoint"), at.steps("restore")
    return [(up, step) for step in samples(up, "checkpoint.seize", "checkpoint.mark-ready")] + \
           [(down, step) for step in samples(down, "restore.threads", "restore.commit")]


def halted_jobs(at, subject, killed):
    """A job of each kind, halted at each step of the sample: what was taken down before is taken up again."""
    for steps, step in daemon_kill_items(at):
        if steps.verb == "restore":
            subject.checkpoint()
        job, worker = halt_at(subject, steps.verb, step)
        yield steps, step, f"{killed} killed at {step}", job, worker


@case
def daemon_killed(t):
    """The job does not need it: it ends as it would have, and the next daemon knows of it."""
    at = stage(t)
    subject = at.subject("1")
    for steps, step, when, job, worker in halted_jobs(at, subject, "daemon"):
        daemon = at.host.main_pid("checkpointd.service")
        at.host.sh(f"kill -KILL {daemon}; kill -CONT {worker}")
        wait_ended(subject, job, when)
        listed = [entry for entry in at.host.run("crctl", "jobs", "--json").json() if str(entry["Id"]) == job]
        check_equal([entry["State"] for entry in listed], ["done"], f"{when}: its state for the next daemon")
        check(at.host.main_pid("checkpointd.service") not in (0, daemon), f"{when}: there is a next daemon")
        if steps.verb == "checkpoint":
            reply = subject.look(counter_now=subject.folder)
            subject.last = reply["counter"]
            subject.images = {max(reply["look"]["images"]): "ready"}
            subject.check_down(reply["look"], when)
            subject.restore(when)
        else:
            subject.images = {image: "consumed" for image in subject.images}
            subject.check_restored(subject.look(counter=subject.folder), when)


def check_settled(subject, steps, step, when):
    """After the worker's death at `step` its unit is what it must be; it is left running."""
    late = steps.is_late(step)
    if (steps.verb == "checkpoint") != late:  # it must run
        if steps.verb == "restore":
            subject.images = {image: "consumed" for image in subject.images}
            subject.check_restored(subject.look(counter=subject.folder), when)
        else:
            subject.check_untouched(subject.look(counter=subject.folder), when)
        return
    reply = subject.look(counter_now=subject.folder)
    if steps.verb == "checkpoint":
        subject.last = reply["counter"]
        new = max(reply["look"]["images"])
        subject.images = {image: "consumed" for image in reply["look"]["images"]} | {new: "ready"}
    subject.check_down(reply["look"], when, is_reserved=steps.verb == "restore")
    subject.restore(when)


@case
def daemon_and_worker_killed(t):
    """The next daemon and PID 1 both undo what was left, at the same time."""
    at = stage(t)
    subject = at.subject("2")
    for steps, step, when, job, worker in halted_jobs(at, subject, "daemon and worker"):
        at.host.sh(f"kill -KILL {at.host.main_pid('checkpointd.service')} {worker}")
        wait_ended(subject, job, when)
        check_settled(subject, steps, step, when)


@case
def worker_killed_without_a_daemon(t):
    """PID 1 sees to it alone, before anybody calls a daemon; the next one says how the job ended."""
    at = stage(t)
    subject = at.subject("3")
    for steps, step, when, job, worker in halted_jobs(at, subject, "worker without a daemon"):
        at.host.sh(f"systemctl stop checkpointd.service; kill -KILL {worker}")
        left = lambda: subject.look()["look"]["jobs"][job]
        wait_for(lambda: not left()["undo"], f"{when}: it is undone", interval=0.2)
        check_equal(at.host.main_pid("checkpointd.service"), 0, f"{when}: main PID of the daemon")
        check_equal(left()["ended"], False, f"{when}: that somebody said how it ended")
        state = subject.look()["look"]["unit"]["ActiveState"]
        up = (steps.verb == "checkpoint") != steps.is_late(step)
        check_equal(state, "active" if up else "inactive", f"{when}: the unit")
        wait_for(lambda: [entry for entry in at.host.run("crctl", "jobs", "--json").json()
                          if str(entry["Id"]) == job and entry["State"] == "failed"],
                 f"{when}: its state for the next daemon")
        check_settled(subject, steps, step, when)


@case
def cancelled(t):
    """By Ctrl-C in crctl, and by Job.Cancel from elsewhere."""
    at = stage(t)
    subject = at.subject("3")
    up, down = at.steps("checkpoint"), at.steps("restore")
    for step in samples(up, "checkpoint.freeze", "checkpoint.memory"):
        if not up.is_late(step) and step != NO_WAY_BACK["checkpoint"]:
            job, worker = halt_at(subject, "checkpoint", step)
            at.host.run("crctl", "jobs", "cancel", job)
            at.host.run("kill", "-CONT", str(worker))
            wait_ended(subject, job, f"cancelled at {step}")
            subject.check_untouched(subject.look(counter=subject.folder), f"cancelled at {step}")
    subject.checkpoint()
    for step in samples(down, "units.stage.wait-helper", "restore.memory"):
        if not down.is_late(step) and step != NO_WAY_BACK["restore"]:
            code, err = interrupt(subject, step)
            check_equal(code, 8, f"Ctrl-C at {step}: crctl's exit code ({err})")
            check_in("cancelled", err, f"Ctrl-C at {step}: what crctl says")
            subject.check_down(subject.look()["look"], f"Ctrl-C at {step}")
    subject.restore("after it was cancelled")


def interrupt(subject, step):
    """crctl restore in the foreground, Ctrl-C when its job stands at `step`."""
    before = set(subject.look()["look"]["jobs"])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(subject.host.run, "crctl", "restore", subject.unit, "--x-fault",
                              f"step={step},action=stop", check=False, timeout=240)
        job = wait_for(lambda: list(set(subject.look()["look"]["jobs"]) - before), "the job is there")[0]
        worker = wait_halted(subject.host, job, step)
        subject.host.run("pkill", "-INT", "-x", "crctl")
        shown = lambda: subject.host.run("crctl", "jobs", "--json").json()
        wait_for(lambda: [entry for entry in shown() if str(entry["Id"]) == job and
                          entry["State"] == "cancelling"], "the job is being cancelled")
        subject.host.run("kill", "-CONT", str(worker))
        outcome = running.result()
    return outcome.code, outcome.err


@case
def units_that_are_refused(t):
    at = stage(t)
    for verb in ("checkpoint", "restore"):
        refused = at.host.run("crctl", verb, "nothing-such.service", check=False)
        check_equal(refused.code, 3, f"{verb} of an unknown unit: {refused.err}")
        check_in("nothing-such.service", refused.err, "what it says")
    for unit in ("dbus.service", "systemd-journald.service", "checkpointd.service"):
        refused = at.host.run("crctl", "checkpoint", unit, check=False)
        check(refused.code != 0, f"{unit} can be checkpointed", refused)
        check_in("must not stand still", refused.err, f"a checkpoint of {unit}")
        check_equal(at.host.unit(unit, "ActiveState", "DropInPaths"),
                    {"ActiveState": "active", "DropInPaths": ""}, f"{unit} afterwards")
    left = at.host.sh(f"ls -d {STORE}/nothing-such.service /run/systemd/system/nothing-such.service.d "
                      "2>/dev/null || true").out
    check_equal(left, "", "what is left of it")


@case
def jobs_are_in_the_journal(t):
    """`journalctl -u UNIT` tells of the jobs on it, of the worker's death as well."""
    at = stage(t)
    subject = at.subject("1")
    done = subject.checkpoint()
    killed = subject.inject("restore", "restore.memory", "kill")["job"]
    subject.restore()

    def records(job):
        found = at.host.journal(subject.unit, f"CHECKPOINTD_JOB={job['Id']}")
        return sorted((record["PRIORITY"], record["MESSAGE"]) for record in found)

    wait_for(lambda: len(records(done)) == 2 and len(records(killed)) == 3, "all of them are written")
    check_equal([priority for priority, _ in records(done)], ["6", "6"], "priorities, it went well")
    check_in("done in ", records(done)[-1][1], "how it ended")
    check_in(done["Image"], records(done)[-1][1], "its image")
    check_equal([priority for priority, _ in records(killed)], ["3", "4", "6"], "priorities, its worker died")
    check_in("the worker died in step restore.memory", records(killed)[0][1], "how it ended")
    shown = {record["MESSAGE"] for record in at.host.journal("checkpointd.service")}
    check({text for _, text in records(done) + records(killed)} <= shown, "journalctl -u checkpointd shows them")


@case
def damaged_image(t):
    """One byte of any file flipped: refused by its digest, before PID 1 is asked for anything; if it is one of the
    pages, which are checked while they are restored, before any of it runs."""
    at = stage(t)
    subject = at.subject("1")
    image = f"{STORE}/{subject.checkpoint()['Image']}"
    before = subject.look()["look"]["unit"]["InvocationID"]
    files = [name for name in at.host.run("ls", image).out.split() if name != "checkpointd-state"]
    some = files if SOAK else [name for name in files if re.match("checkpointd-[ium]|pages-1|pstree|files", name)]
    check(len(some) >= 6, "files to damage", files)
    flip = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(0, 2); n = f.tell() // 2; f.seek(n); " \
           "b = f.read(1)[0]; f.seek(n); f.write(bytes([b ^ 1]))"
    for name in some:
        at.host.run("python3", "-c", flip, f"{image}/{name}")
        refused = at.host.run("crctl", "restore", subject.unit, check=False)
        at.host.run("python3", "-c", flip, f"{image}/{name}")
        check(refused.code != 0, f"{name} damaged: a restore is refused", refused)
        look = subject.look()["look"]
        subject.check_down(look, f"{name} damaged")
        if name.startswith("pages-"):
            check_in(f"{name}: is damaged between offsets", refused.err, f"{name} damaged: what is told")
        else:
            check_equal(look["unit"]["InvocationID"], before, f"{name} damaged: starts of the unit")
    subject.restore("with its bytes as they were")


@case
def taken_pid(t):
    """A PID of the image is kept from others; if one has a new owner nevertheless, that is named."""
    at = stage(t)
    subject = at.subject("1")
    image = subject.checkpoint()["Image"]
    pid = subject.last["state"]["pid"]
    for number in {pid, *subject.last["state"]["threads"].values()}:
        check_equal(at.host.run("python3", "-c", harness.TAKE, str(number)).out, "File exists\n", f"who takes {number}")
    keeper = at.host.keeper_of(image)
    at.host.run("systemctl", "stop", keeper)
    with at.host.taken(pid):
        refused = at.host.run("crctl", "restore", subject.unit, check=False)
        check_equal(refused.code, 4, f"a restore with PID {pid} taken: {refused.err}")
        check_in(str(pid), refused.err, "the PID in what it says")
        check_in("sleep", refused.err, "the holder's name in what it says")
        check_in(f"/taker-{pid}.service", refused.err, "the holder's unit in what it says")
        subject.check_down(subject.look()["look"], "PID taken", is_reserved=False)
    subject.restore("with its PID free again")
    check_equal(at.host.unit(keeper)["ActiveState"], "inactive", "what kept its PIDs")
    image = subject.checkpoint()["Image"]
    keeper = at.host.keeper_of(image)
    at.host.run("crctl", "rm", "--force", image)
    check_equal(at.host.unit(keeper)["ActiveState"], "inactive", "what kept the PIDs of a removed image")
    at.start_over("1")


@case
def every_step_of_a_restore_in_a_namespace(t):
    """No process of it is left, the namespace's first one neither, and the next attempt goes well."""
    at = stage(t)
    steps = at.steps_in_namespace()
    some = samples(steps, "restore.pid-namespace", "restore.agent", "restore.memory", "restore.registers",
                   "units.hand-over.main-pid", "restore.commit", "restore.run")
    subject = at.subject("1")
    with at.with_taken_pid(subject):
        for step in [step for step in some if not steps.is_late(step)]:
            for action in ("fail", "kill") if SOAK or step == "restore.pid-namespace" else ("kill",):
                when = f"{action} at {step} on the way into a namespace"
                reply = subject.inject("restore", step, action)
                subject.check_fault(reply, step, action, when)
                subject.check_down(reply["look"], f"after {when}", is_reserved=False)
        reply = subject.crctl("restore")
        subject.check_in_namespace(reply, "after all of them")
    at.host.run("systemctl", "stop", subject.unit)
    subject.images = reply["look"]["images"]
    subject.check_down(subject.look()["look"], "stopped in its namespace", is_reserved=False)
    at.start_over("1")


@case
def processes_and_sockets(t):
    """Another kind of service: the steps that the counter does not come to, and some that it does."""
    at = stage(t)
    relay, recorded = at.relay()
    for verb, some in (("checkpoint", {"checkpoint.memory"}), ("restore", {"restore.memory"})):
        steps = recorded[verb]
        own = set(steps.names) - set(at.steps(verb).names)
        print(f"        {verb}, steps of its own: {' '.join(sorted(own))}", flush=True)
        for step in steps.names:
            if not SOAK and step not in own | some:
                continue
            if verb == "restore":
                relay.checkpoint()
            for action in ("fail", "kill"):
                if verb == "checkpoint":
                    relay.fault_in_checkpoint(step, action, steps.is_late(step))
                elif not steps.is_late(step):
                    relay.fault_in_restore(step, action, False)
            if verb == "restore":
                relay.restore(f"after faults at {step}")
    relay.snapshot()  # each of its processes has a copy
    for step in ("checkpoint.fork", "checkpoint.copies"):
        relay.fault_in_snapshot(step, "kill", False)


@case
def a_suspension_in_a_user_namespace(t):
    """The placeholder stays outside of it and keeps it; whoever joins it on the way back does so by a process of ours."""
    relay, recorded = stage(t).relay()
    down, up = recorded["suspend"], recorded["resume"]
    both = ("units.suspend.placeholder", "units.resume.enter-namespaces")
    actions = lambda step: ("fail", "kill") if SOAK or step in both else ("kill",)
    for step in samples(down, "units.suspend.placeholder", "units.suspend.end-tasks", "units.suspend.hold-numbers",
                        "units.suspend.make-gate"):
        for action in actions(step):
            relay.fault_in_suspend(step, action, down.is_late(step))
    for step in samples(up, "units.resume.enter-namespaces", "units.resume.free-numbers", "restore.thread-numbers",
                        "restore.run"):
        for action in actions(step):
            if relay.look()["look"]["copies"]:
                relay.suspend()
            relay.fault_in_resume(step, action, up.is_late(step))
    if not relay.look()["look"]["copies"]:
        relay.resume("at a second try")


def faults_elsewhere():
    """Steps of units with devices, and of starts at a gate, as the suites that inject faults into them name them. gpu.py
    looks whether those that it goes through are all that its jobs have."""
    suites = [TOP / "tests/integration" / name for name in ("gpu_units.py", "device_files.py", "boot.py")]
    return set(re.findall(r'"((?:checkpoint|restore|units)\.[a-z.-]+)"', "".join(path.read_text("utf-8") for path in suites)))


@case
def every_step_in_the_source_is_gone_through(t):
    at = stage(t)
    gone_through = [at.steps("checkpoint"), at.steps("restore"), at.steps_in_namespace(),
                    *map(at.steps_of_mode, ("snapshot", "suspend", "resume")), *at.relay()[1].values()]
    seen = {name for steps in gone_through for name in steps.names}
    said = set()
    for room in ("core", "units", "service"):
        for path in (TOP / room).rglob("*.cc"):
            if not path.stem.endswith("_test"):
                said |= set(re.findall(r'\benter\("([a-z.-]+)"\)', path.read_text("utf-8")))
    check(len(said) > 30, "steps in the source", sorted(said))
    check_equal(sorted(said - seen - faults_elsewhere()), [], "steps that no fault was injected into")


harness.main()
