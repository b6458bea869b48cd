#!/usr/bin/env python3
"""The corpus script on modules of a few lines, made here in the format of the real ones."""
import os
import re
import struct
import subprocess
import sys
import tempfile
import unittest
import zlib
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "launch/corpus/make_corpus.py"
TREE = "usr/share/sword"
MHCC = "modules/comments/zcom/mhcc"
TDAVID = "modules/comments/zcom/tdavid"
WEB = "modules/texts/ztext/engWEB2015eb"


def write_module(folder, name, letter, blocks):
    folder.mkdir(parents=True, exist_ok=True)
    index, data = b"", b""
    for block in blocks:
        packed = zlib.compress(block.encode())
        index += struct.pack("<III", len(data), len(packed), len(block.encode()))
        data += packed
    (folder / f"{name}.{letter}zs").write_bytes(index)
    (folder / f"{name}.{letter}zz").write_bytes(data)


class Corpus(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory(prefix="tsr-corpus-test-")
        self.addCleanup(self.scratch.cleanup)
        self.top = Path(self.scratch.name)
        self.out = self.top / "out"
        self.tree = self.top / "packages" / TREE
        write_module(self.tree / MHCC, "nt", "b", [
            '<div sID="a" type="x-p"/>First &amp; <hi type="bold">bold</hi>.<note n="1">a <hi>note</hi></note>'
            '<div eID="a" type="x-p"/><table><row><cell>One</cell><cell>Two</cell></row></table>'])
        write_module(self.tree / MHCC, "ot", "b", ["Old\tbook"])
        write_module(self.tree / TDAVID, "nt", "c", [])
        write_module(self.tree / TDAVID, "ot", "c", ["“It’s” — caf\u00e9 \u05d0 \t x", "<l/>a line<l/>another"])
        write_module(self.tree / WEB, "ot", "b", [
            '<w lemma="strong:H1">In</w> <w>the</w> <w>beginning</w>,<div type="x-milestone" sID="q"/>God.'
            + "".join(f"<lb/>Verse {i}" for i in range(100))])

    def make(self, expected, *more, env=None):
        done = subprocess.run([sys.executable, SCRIPT, self.out, *more], capture_output=True, text=True, env=env)
        self.assertEqual(done.returncode, expected, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def make_from_tree(self, expected=0):
        return self.make(expected, "--packages", self.tree)

    def texts(self):
        return [(self.out / name).read_text(encoding="ascii") for name in ("train.txt", "valid.txt")]

    def test_text_is_plain_and_in_order(self):
        self.make_from_tree()
        train, valid = self.texts()
        verses = "".join(f"Verse {i}\n" for i in range(100))
        self.assertEqual(train + valid, "First & bold.\nOne Two\n\nOld book\n\n\"It's\" -- cafe x\n\n"
                                        "a line\nanother\n\nIn the beginning, God.\n" + verses)
        share = len(valid) / len(train + valid)
        self.assertTrue(0.04 < share <= 0.05, share)
        self.assertTrue(valid.startswith("Verse ") and train.endswith("\n"))

    def test_is_made_once(self):
        self.make_from_tree()
        before = self.texts()
        self.assertIn("nothing to do", self.make(0, "--packages", self.top / "nowhere"))
        (self.out / "valid.txt").write_text("changed")
        self.make_from_tree()
        self.assertEqual(self.texts(), before)
        (self.out / "train.txt").unlink()
        self.make_from_tree()
        self.assertEqual(self.texts(), before)

    def test_packed_packages_are_unpacked(self):
        self.make_from_tree()
        before = self.texts()
        debs = self.top / "debs"
        debs.mkdir()
        for package, folder in (("sword-comm-mhcc", MHCC), ("sword-comm-tdavid", TDAVID), ("sword-text-web", WEB)):
            root = self.top / package
            (root / "DEBIAN").mkdir(parents=True)
            (root / "DEBIAN/control").write_text(f"Package: {package}\nVersion: 1\nArchitecture: all\n"
                                                 "Maintainer: none <none@example.org>\nDescription: test\n")
            target = root / TREE / folder
            target.parent.mkdir(parents=True)
            target.symlink_to(self.tree / folder)  # dpkg-deb keeps it, so the text is read through it
            subprocess.run(["dpkg-deb", "--build", root, debs / f"{package}_1_all.deb"], check=True,
                           stdout=subprocess.DEVNULL)
        (self.out / "train.txt").unlink()
        self.make(0, "--packages", debs)
        self.assertEqual(self.texts(), before)

    def assert_refused(self, words):
        message = self.make_from_tree(1)
        self.assertTrue(re.search(words, message), message)
        self.assertNotIn("Traceback", message)
        self.assertFalse((self.out / "train.txt").exists())

    def test_damaged_modules_are_refused(self):
        index, data = self.tree / MHCC / "ot.bzs", self.tree / MHCC / "ot.bzz"
        good_index, good_data = index.read_bytes(), data.read_bytes()
        index.write_bytes(good_index[:-1])
        self.assert_refused(r"ot\.bzs: has 11 bytes, must be a multiple of 12")
        index.write_bytes(good_index)
        data.write_bytes(good_data[:-1])
        self.assert_refused(r"ot\.bzz: has \d+ bytes, block 0 ends at \d+")
        data.write_bytes(b"XX" + good_data[2:])
        self.assert_refused(r"ot\.bzz: block 0: Error -3")
        data.write_bytes(good_data)
        index.write_bytes(good_index[:8] + struct.pack("<I", 7))
        self.assert_refused(r"ot\.bzz: block 0 unpacks to 8 bytes, not 7")
        data.unlink()
        self.assert_refused(r"No such file.*ot\.bzz")

    def test_missing_packages_are_named(self):
        self.assertIn("holds no sword-comm-mhcc_*.deb", self.make(1, "--packages", self.top / "nowhere"))
        for path in (self.tree / WEB).iterdir():
            path.unlink()
        self.assert_refused(r"engWEB2015eb: holds no text")

    @unittest.skipIf(Path("/usr/share/sword", WEB).is_dir(), "the packages are installed here")
    def test_no_network_is_explained(self):
        programs = self.top / "bin"
        programs.mkdir()
        (programs / "apt-get").write_text("#!/bin/sh\necho 'E: no route to host'\nexit 100\n")
        (programs / "apt-get").chmod(0o755)
        message = self.make(1, env={"PATH": f"{programs}:{os.environ['PATH']}"})
        self.assertIn("E: no route to host", message)
        self.assertIn("pass their folder with --packages DIR", message)


if __name__ == "__main__":
    unittest.main()
