"""The first second of a command: help without torch, a first line before torch, Ctrl-C without a traceback."""

import os
import signal
import subprocess
import sys

import pytest

from miniclip import cli
from miniclip.cli.running import SPIN_COUNT, WAITING

# A module finder that fails as soon as torch is imported.
NO_TORCH = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "numpy", "PIL", "matplotlib"):
            raise KeyboardInterrupt if {interrupt} else AssertionError(f"{{name}} is imported")
sys.meta_path.insert(0, Finder())
from miniclip.cli import main
sys.argv = ["miniclip", *{arguments}]
sys.exit(main())
"""


def run(arguments, interrupt=False):
    code = NO_TORCH.format(arguments=arguments, interrupt=interrupt)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["data", "cache", "--help"], 0),
        (["convert", "--help"], 0),
        (["train", "--epocs", "3"], 2),
        (["train", "--epochs", "many"], 2),
        (["trian"], 2),
        (["train", "--config", "/nothing.toml"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_help_and_wrong_arguments_import_no_torch(arguments, code):
    process = run(arguments)
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr


def test_train_prints_a_line_before_it_imports_torch_and_stops_without_a_traceback():
    process = run(["train", "--data", "photos.csv"], interrupt=True)
    assert process.stdout == "reading photos.csv\n"
    assert process.stderr == "miniclip: stopped\n"
    assert process.returncode == cli.INTERRUPTED


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, SPIN_COUNT), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_spin_for_a_short_time_unless_the_user_has_chosen(variables, expected):
    code = NO_TORCH.replace("raise KeyboardInterrupt", "raise SystemExit(str(os.environ.get('GOMP_SPINCOUNT')))")
    code = "import os" + code.format(arguments=["train", "--data", "photos.csv"], interrupt=True)
    environment = {name: value for name, value in os.environ.items() if name not in WAITING} | variables
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert process.stderr.strip() == expected


def test_package_imports_torch_on_first_use():
    code = (
        "import sys, miniclip; assert 'torch' not in sys.modules; miniclip.load; assert 'torch' in sys.modules\n"
        "assert miniclip.config.preset and miniclip.losses.reference and miniclip.CLIP.__name__ == 'CLIP'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of POSIX")
def test_ctrl_c_while_torch_is_imported():
    command = [sys.executable, "-m", "miniclip", "train", "--data", "shapes"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "reading shapes\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == cli.INTERRUPTED
    assert err == "miniclip: stopped\n"
