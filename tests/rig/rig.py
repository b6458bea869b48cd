#!/usr/bin/env python3
"""A cluster on one machine: hosts and network planes in network namespaces, for real `mpirun` over them.

Each host is a namespace with an own host name and one interface a plane: p0, p1, ...; each plane is a
bridge, so that no frame can pass from one plane to another. What is sent from an address of one plane to
an address of another takes a further interface, `cross`: its counters tell what crossed. Needs root.

usage: rig.py run [--hosts N] [--planes P] [--slots S] [--rate 1gbit] -- PROGRAM WORDS...
           start it with S ranks on each host; bytes of each interface as JSON at the end
       rig.py up NAME [--hosts N] [--planes P] [--rate 1gbit]     a rig that stays, and what it is for:
       rig.py counters NAME | rate NAME 100mbit | plane NAME 1 down | kill NAME HOST | down NAME
"""
import argparse
import ctypes
import json
import os
import re
import shlex
import signal
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SETTINGS = {  # of Open MPI: as root, more ranks than cores, no ssh
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_pml": "ob1", "OMPI_MCA_plm_rsh_no_tree_spawn": "1",
    "OMPI_MCA_plm_rsh_agent": os.path.join(HERE, "agent.sh"), "OMPI_MCA_oob_tcp_if_include": "p0",
    "OMP_WAIT_POLICY": "passive",
}


LIBC = ctypes.CDLL(None)  # loaded before any fork
PR_SET_PDEATHSIG = 1


def end_with_parent():
    """In a child: a test that is killed must not leave its run behind."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def call(*words, check=True):
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def why_not():
    """What this machine lacks to hold a rig; None: nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"tr{os.getpid()}-try"
    try:
        call("ip", "netns", "add", name)
        call("ip", "-n", name, "link", "add", "end0", "type", "veth", "peer", "name", "end1")
        call("ip", "-n", name, "link", "add", "try0", "type", "bridge")
        call("tc", "-n", name, "qdisc", "add", "dev", "end0", "root", "tbf", "rate", "1gbit", "burst", "256kb",
             "latency", "50ms")
        call("ip", "netns", "exec", name, "unshare", "-u", "hostname", "there")
    except (OSError, RuntimeError) as error:
        return f"network namespaces do not work here: {error}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None


def remove_dead():
    """Rigs whose process was killed before it could take them down."""
    for name in call("ip", "netns", "list").split():
        owner = re.match(r"tr(\d+)-", name)
        if owner and not os.path.exists(f"/proc/{owner[1]}"):
            kill_all(name)
            call("ip", "netns", "del", name, check=False)


def kill_all(namespace):
    for process in call("ip", "netns", "pids", namespace, check=False).split():
        try:
            os.kill(int(process), signal.SIGKILL)
        except ProcessLookupError:
            pass


def nic_of(network):
    return "cross" if network == "x" else f"p{network}"


class Rig:
    """Hosts NAME0, NAME1, ... and the namespace NAMEfabric with bridge bP and port hH_P a host and plane.

    has_cross=False: what crosses planes leaves by the interface of the plane that it goes to, as between
    hosts whose planes are one network; for timings.
    """

    def __init__(self, hosts=2, planes=2, rate=None, slots=2, name=None, stays=False, has_cross=True):
        self.name = name or f"tr{os.getpid()}-"
        self.fabric = self.name + "fabric"
        self.hosts, self.planes, self.slots = hosts, planes, slots
        self.networks = [*range(planes), "x"] if has_cross else [*range(planes)]
        if not stays:
            remove_dead()
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        try:
            self._up()
            if rate:
                self.set_rate(rate)
        except BaseException:
            self.down()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.down()

    def host(self, number):
        return f"{self.name}{number}"

    def _up(self):
        call("ip", "netns", "add", self.fabric)
        for network in self.networks:
            call("ip", "-n", self.fabric, "link", "add", f"b{network}", "type", "bridge")
            call("ip", "-n", self.fabric, "link", "set", f"b{network}", "up")
        for number in range(self.hosts):
            host = self.host(number)
            call("ip", "netns", "add", host)
            call("ip", "-n", host, "link", "set", "lo", "up")
            for network in self.networks:
                port, nic = f"h{number}_{network}", nic_of(network)
                call("ip", "-n", self.fabric, "link", "add", port, "type", "veth", "peer", "name", nic,
                     "netns", host)
                call("ip", "-n", self.fabric, "link", "set", port, "master", f"b{network}", "up")
                call("ip", "-n", host, "link", "set", nic, "up")
            for plane in range(self.planes):
                call("ip", "-n", host, "addr", "add", f"10.77.{plane}.{number + 1}/24", "dev", f"p{plane}")
            if "x" in self.networks:
                self._send_crossing(host)

    def _send_crossing(self, host):
        """From one plane's addresses to another's: by `cross`."""
        call("ip", "-n", host, "route", "add", "10.77.0.0/16", "dev", "cross", "table", "77")
        for plane in range(self.planes):
            net = f"10.77.{plane}.0/24"
            call("ip", "-n", host, "rule", "add", "priority", "10", "from", net, "to", net, "lookup", "main")
            call("ip", "-n", host, "rule", "add", "priority", "20", "from", net, "to", "10.77.0.0/16", "lookup",
                 "77")

    def down(self):
        for number in range(self.hosts):
            kill_all(self.host(number))
            call("ip", "netns", "del", self.host(number), check=False)
        call("ip", "netns", "del", self.fabric, check=False)

    def set_rate(self, rate):
        """Limit what each interface sends and receives, as "1gbit"."""
        for number in range(self.hosts):
            for plane in range(self.planes):
                for namespace, device in ((self.host(number), f"p{plane}"), (self.fabric, f"h{number}_{plane}")):
                    call("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf", "rate", rate,
                         "burst", "256kb", "latency", "50ms")

    def counters(self):
        """{host: {interface: {"tx": bytes, "rx": bytes}}}; interfaces are p0, p1, ..., cross, lo."""
        found = {}
        for number in range(self.hosts):
            links = json.loads(call("ip", "-n", self.host(number), "-s", "-j", "link"))
            found[self.host(number)] = {
                link["ifname"]: {way: link["stats64"][way]["bytes"] for way in ("tx", "rx")}
                for link in links if re.fullmatch(r"p\d+|cross|lo", link["ifname"])}
        return found

    def set_plane(self, plane, is_up):
        """A switch that fails, or comes back: nobody is told."""
        call("ip", "-n", self.fabric, "link", "set", f"b{plane}", "up" if is_up else "down")

    def kill_host(self, number):
        """Power loss: first nothing leaves the host any more, then its processes end."""
        for network in self.networks:
            call("ip", "-n", self.fabric, "link", "set", f"h{number}_{network}", "down")
        kill_all(self.host(number))

    def start(self, words, hosts=None, slots=None, env=None, **keywords):
        """mpirun on the first host, with `slots` ranks on each of the hosts (numbers; all of them)."""
        hosts = list(range(self.hosts)) if hosts is None else hosts
        slots = slots or self.slots
        places = ",".join(f"{self.host(number)}:{slots}" for number in hosts)
        return self.start_on(hosts[0], [os.environ.get("MPIRUN", "mpirun"), "--host", places, "-n",
                                        str(slots * len(hosts)), *words], env, **keywords)

    def start_on(self, number, words, env=None, **keywords):
        """A command on one host, with what mpirun needs in its environment."""
        return subprocess.Popen([os.path.join(HERE, "agent.sh"), self.host(number), shlex.join(words)],
                                env={**os.environ, **SETTINGS, **(env or {})}, stdin=subprocess.DEVNULL,
                                preexec_fn=end_with_parent, **keywords)

    def hostfile(self, hosts):
        """The text of one for mpirun."""
        return "".join(f"{self.host(number)} slots={self.slots}\n" for number in hosts)

    def processes(self, number, name):
        """Those of a host whose program has that name."""
        found = []
        for process in call("ip", "netns", "pids", self.host(number), check=False).split():
            try:
                with open(f"/proc/{process}/comm") as file:
                    found += [int(process)] if file.read().strip() == name else []
            except OSError:
                pass
        return found


def difference(before, after):
    """Bytes between two readings of counters()."""
    return {host: {nic: {way: after[host][nic][way] - before[host][nic][way] for way in after[host][nic]}
                   for nic in after[host]} for host in after}


def existing(name):
    """The rig that `up` has left."""
    rig = Rig.__new__(Rig)
    rig.name, rig.fabric, rig.slots = name, name + "fabric", 2
    names = call("ip", "netns", "list")
    rig.hosts = len(re.findall(rf"^{re.escape(name)}\d+\b", names, re.M))
    if rig.hosts == 0:
        sys.exit(f"rig.py: no rig has the name {name}")
    rig.planes = len(re.findall(r"\bb\d+:", call("ip", "-n", rig.fabric, "link")))
    rig.networks = [*range(rig.planes), "x"]
    return rig


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1])
    parser.add_argument("action", choices=["run", "up", "down", "counters", "rate", "plane", "kill"])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--planes", type=int, default=2)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--rate")
    here = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given = parser.parse_args(sys.argv[1:here])
    words = given.words
    if given.action == "run":
        reason = why_not()
        if reason:
            sys.exit(f"rig.py: {reason}")
        with Rig(given.hosts, given.planes, given.rate, given.slots) as rig:
            before = rig.counters()
            code = rig.start(sys.argv[here + 1:]).wait()
            print(json.dumps(difference(before, rig.counters())), file=sys.stderr)
        sys.exit(code)
    if given.action == "up":
        Rig(given.hosts, given.planes, given.rate, name=words[0], stays=True)
        return
    rig = existing(words[0])
    if given.action == "down":
        rig.down()
    elif given.action == "counters":
        print(json.dumps(rig.counters()))
    elif given.action == "rate":
        rig.set_rate(words[1])
    elif given.action == "plane":
        rig.set_plane(int(words[1]), words[2] == "up")
    elif given.action == "kill":
        rig.kill_host(int(words[1]))


if __name__ == "__main__":
    main()
