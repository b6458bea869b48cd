#!/usr/bin/env python3
"""Each rule of rules.py finds its violation, at its line, and nothing else."""
import tempfile
import unittest
from pathlib import Path

import rules

CASES = (  # file, text, line of the finding or None, words of it
    ("runtime/a.c", '#include "collectives/collectives.h"\n', 1, "runtime may not include collectives"),
    ("optim/a.c", 'int a;\n#include "checkpoints/checkpoints.h"\n', 2, "optim may not include checkpoints"),
    ("optim/a.c", '#include "tests/support/unit_test.h"\n', 1, "optim may not include tests"),
    ("optim/a.c", '#include "runtime/memory.h"\n', 1, 'include "runtime/runtime.h"'),
    ("launch/a.c", '#include "optim/optim_impl.h"\n', 1, 'include "optim/optim.h"'),
    ("optim/a.c", '#include "optim_impl.h"\n', 1, "must be named from the root"),
    ("optim/a.c", '#include "collectives/mpi_bridge.h"\n', 1, "is not for optim"),
    ("runtime/a.c", "#include <mpi.h>\n", 1, "<mpi.h> may be included by collectives/mpi/"),
    ("collectives/comm.c", "#include <mpi.h>\n", 1, "<mpi.h> may be included by collectives/mpi/"),
    ("collectives/a.c", "# include <hdf5.h>\n", 1, "<hdf5.h> may be included by checkpoints/"),
    ("runtime/a.c", "#include <oneapi/dnnl/dnnl.h>\n", 1, "may be included by runtime/cpu/"),
    ("runtime/a.c", "#include <cuda_runtime.h>\n", 1, "may be included by runtime/cuda/"),
    ("optim/a.c", "#include <cmocka.h>\n", 1, "may be included by launch, tests only"),
    ("runtime/a.c", 'f(getenv("X"));\n', 1, "only launch reads the environment"),
    ("runtime/a.c", "/* one\n two */ exit(1);\n", 2, "only launch reads the environment"),
    ("runtime/a.c", "    abort ();\n", 1, "only launch reads the environment"),
    ("collectives/mpi/a.c", "f(MPI_COMM_WORLD);\n", 1, "only launch knows the MPI world"),
    ("parallel/a.c", "p = malloc(8);\n", 1, "memory comes from tsr_mem_alloc()"),
    ("launch/a.c", "set(json_real(x));\n", 1, "by figure_json()"),
    ("launch/a.c", 'json_pack("{s:i,s:f}", "n", 1, "x", x);\n', 1, "by figure_json()"),
    ("launch/figure.h", "return json_real(value);\n", None, ""),
    ("tests/a.c", "/* TO" "DO: more */\n", 1, "unfinished work"),
    ("tests/a.c", "x" * 101 + "\n", 1, "101 columns, at most 100"),
    ("tests/a.c", "int a; \n", 1, "space that nobody sees"),
    ("tests/a.c", "\tint a;\n", 1, "tab or space"),
    ("tests/a.c", "\n" * 601, 601, "601 lines, at most 600"),
    ("runtime/a.c", "/* exit() ends it, malloc() takes */\n", None, ""),
    ("runtime/a.c", 'log("exit(1) /* malloc(2) ");\n', None, ""),
    ("runtime/a.c", "tsr_exit(1); x.abort(2); x->exit(3);\n", None, ""),
    ("runtime/memory.c", "p = aligned_alloc(64, 64);\n", None, ""),
    ("runtime/a.c", '#include "runtime/data/data_impl.h"\n', None, ""),
    ("optim/a.c", '#include "runtime/runtime.h"\n#include <string.h>\n', None, ""),
    ("checkpoints/a.c", '#include "collectives/mpi_bridge.h"\n#include <hdf5.h>\n', None, ""),
    ("runtime/a.c", '#include "tests/emulation/cuemu.h"\n', 1, "runtime may not include tests"),
    ("runtime/cuda/a.cu", '#include "tests/emulation/cuemu.h"\n', None, ""),
    ("launch/a.c", '#include <mpi.h>\nexit(getenv("X"));\n', None, ""),
    ("tests/a.c", '#include "optim/optim_impl.h"\n#include <cmocka.h>\nmalloc(8);\n' + "\n" * 597, None, ""),
)


class Rules(unittest.TestCase):
    def test_cases(self):
        for name, text, line, words in CASES:
            with self.subTest(name=name, text=text[:60]), tempfile.TemporaryDirectory() as root:
                path = Path(root, name)
                path.parent.mkdir(parents=True)
                path.write_text(text)
                found = list(rules.problems(Path(root)))
                if line is None:
                    self.assertEqual(found, [])
                else:
                    self.assertEqual(len(found), 1, found)
                    self.assertTrue(found[0].startswith(f"{name}:{line}: "), found)
                    self.assertIn(words, found[0])

    def test_nothing_to_check_is_an_error(self):
        with tempfile.TemporaryDirectory() as root:
            self.assertEqual(len(list(rules.problems(Path(root)))), 1)


if __name__ == "__main__":
    unittest.main()
