#!/usr/bin/env python3
"""Make a training text of about 21 MB of public-domain English from three Debian packages.

usage: make_corpus.py OUT_DIR [--packages DIR]

Writes OUT_DIR/train.txt and OUT_DIR/valid.txt (the last 5 %), plain ASCII, one paragraph a line; the
same bytes on every machine. Does nothing if they are there already. The packages are taken from
/usr/share/sword if installed, else downloaded by apt-get into a temporary folder (root is not needed).
--packages DIR takes them from DIR instead, which holds their .deb files or an unpacked tree.

The packages are modules of the SWORD project: Matthew Henry's Concise Commentary, Spurgeon's Treasury
of David and the World English Bible. A module keeps its text in compressed blocks: NAME.?zs is a table
of (offset, size, uncompressed size), three little-endian 32-bit numbers a block, into NAME.?zz, where
each block is a zlib stream of OSIS, an XML markup.
"""
import argparse
import hashlib
import html
import os
import re
import struct
import subprocess
import sys
import tempfile
import unicodedata
import zlib
from pathlib import Path

# In this order: what comes last is held out.
MODULES = (
    ("sword-comm-mhcc", "modules/comments/zcom/mhcc"),
    ("sword-comm-tdavid", "modules/comments/zcom/tdavid"),
    ("sword-text-web", "modules/texts/ztext/engWEB2015eb"),
)
PACKAGES = [package for package, _ in MODULES]
INSTALLED = Path("/usr/share/sword")
STAMP = "corpus.stamp"  # digest, bytes and name of this script and of what it made


class CorpusError(Exception):
    """What the user is told instead of a traceback."""


# ---- from modules to text --------------------------------------------------------------------------

NOTE = re.compile(r"<note\b.*?</note>", re.S)
MILESTONE = re.compile(r'<div type="x-milestone"[^>]*>')
BREAK = re.compile(r"</?(?:div|title|l|lg|lb|p|br|table|row|list|item|chapter|speaker)\b[^>]*>")
SPACE = re.compile(r"</?cell\b[^>]*>")
TAG = re.compile(r"<[^>]*>")
FOLD = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "—": "--", "–": "-", "•": "*", "½": "1/2",
                      "æ": "ae", "Æ": "AE"})


def plain(markup):
    """Text of one block: paragraphs are lines, notes and markup are gone, all bytes are printable."""
    text = MILESTONE.sub(" ", NOTE.sub("", markup))
    text = TAG.sub("", SPACE.sub(" ", BREAK.sub("\n", text)))
    text = unicodedata.normalize("NFKD", html.unescape(text).translate(FOLD))
    text = text.encode("ascii", "ignore").decode()
    text = re.sub(r"[^\n -~]+", " ", text)
    text = re.sub(r" +", " ", text)
    return re.sub(r" ?\n[ \n]*", "\n", text).strip()


def blocks(index_path):
    """Blocks of one .?zs / .?zz pair, each checked against the sizes that the table names."""
    data_path = index_path.with_suffix(index_path.suffix[:-1] + "z")
    index, data = index_path.read_bytes(), data_path.read_bytes()
    if len(index) % 12 != 0:
        raise CorpusError(f"{index_path}: has {len(index)} bytes, must be a multiple of 12")
    for number, (offset, size, full_size) in enumerate(struct.iter_unpack("<III", index)):
        if offset + size > len(data):
            raise CorpusError(f"{data_path}: has {len(data)} bytes, block {number} ends at {offset + size}")
        try:
            block = zlib.decompress(data[offset:offset + size])
        except zlib.error as error:
            raise CorpusError(f"{data_path}: block {number}: {error}") from None
        if len(block) != full_size:
            raise CorpusError(f"{data_path}: block {number} unpacks to {len(block)} bytes, not {full_size}")
        yield block.decode("utf-8", "replace")


def module_text(tree, folder):
    """Text of one module, New Testament first; a testament without blocks is fine, no text is not."""
    pairs = [path for name in ("nt", "ot") for path in sorted((tree / folder).glob(name + ".?zs"))]
    texts = [text for pair in pairs for text in map(plain, blocks(pair)) if text]
    if not texts:
        raise CorpusError(f"{tree / folder}: holds no text (files nt.?zs, ot.?zs)")
    return "\n\n".join(texts) + "\n"


# ---- where the modules come from --------------------------------------------------------------------


def run(command, folder):
    """Run a command in a folder; returns its output if it failed, else None."""
    try:
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except FileNotFoundError:
        return f"{command[0]}: no such program (not a Debian system?)"
    return None if done.returncode == 0 else done.stdout.strip()


def download(folder):
    """Fetch the .deb files into folder; stale or missing package lists are replaced by private ones."""
    fetch = ["apt-get", "download", *PACKAGES]
    if run(fetch, folder) is None:
        return
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    private = ["-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
    no_update = run(["apt-get", *private, "-o", "APT::Update::Error-Mode=any", "update"], folder) or ""
    no_fetch = run(fetch[:1] + private + fetch[1:], folder)
    if no_fetch is not None:
        why = [line for line in (no_update + "\n" + no_fetch).splitlines() if line.startswith("E:")]
        raise CorpusError("cannot download the packages:\n  " + "\n  ".join(why) + "\n"
                          "Without a network, fetch these three .deb files from packages.debian.org elsewhere "
                          "and pass their folder with --packages DIR.")


def unpack(folder, into):
    """Unpack the newest .deb of each package."""
    for package in PACKAGES:
        files = sorted(folder.glob(f"{package}_*.deb"))
        if not files:
            raise CorpusError(f"{folder}: holds no {package}_*.deb")
        why = run(["dpkg-deb", "-x", str(files[-1].resolve()), str(into)], folder)
        if why is not None:
            raise CorpusError(f"{files[-1]}: {why}")


def find_tree(packages, scratch):
    """Folder that holds modules/."""
    if packages is not None:
        for tree in (packages, packages / "usr/share/sword"):
            if (tree / "modules").is_dir():
                return tree
        source = packages
    elif all((INSTALLED / folder).is_dir() for _, folder in MODULES):
        return INSTALLED
    else:
        source = scratch
        print(f"corpus: downloading {' '.join(PACKAGES)}", flush=True)
        download(scratch)
    unpack(source, scratch)
    return scratch / "usr/share/sword"


# ---- what is written ------------------------------------------------------------------------------


def split(text):
    """Cut at the first paragraph that starts after 95 %."""
    cut = text.index("\n", len(text) - len(text) // 20 - 1) + 1
    return text[:cut], text[cut:].lstrip("\n")


def stamp_of(out):
    """Lines that name the files as they are now; None if one is missing."""
    lines = []
    for path in (Path(__file__), out / "train.txt", out / "valid.txt"):
        if not path.is_file():
            return None
        data = path.read_bytes()
        lines.append(f"{hashlib.sha256(data).hexdigest()} {len(data)} {path.name}\n")
    return "".join(lines)


def write(path, text):
    """Write a file that is whole whenever it is there."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(text.encode("ascii"))
    os.replace(temporary, path)


def make(out, packages):
    stamp = out / STAMP
    if stamp.is_file() and stamp.read_text() == stamp_of(out):
        print(f"corpus: {out} is complete, nothing to do")
        return
    out.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    texts = []
    with tempfile.TemporaryDirectory(prefix="tessera-corpus-") as scratch:
        tree = find_tree(packages, Path(scratch))
        for package, folder in MODULES:
            texts.append(module_text(tree, folder))
            print(f"corpus: {package} {len(texts[-1])} bytes of text", flush=True)
    train, valid = split("\n".join(texts))
    write(out / "train.txt", train)
    write(out / "valid.txt", valid)
    write(stamp, stamp_of(out))
    print(f"corpus: {out / 'train.txt'} {len(train)} bytes, {out / 'valid.txt'} {len(valid)} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--packages", type=Path, metavar="DIR", help="folder of the packages, packed or not")
    args = parser.parse_args()
    try:
        make(args.out, args.packages)
    except (CorpusError, OSError) as error:
        print(f"make_corpus: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
