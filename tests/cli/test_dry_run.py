"""`miniclip train --dry-run`."""

from miniclip import cli


class TestDryRun:
    FLAGS = ("--batch-size", "8", "--device", "cpu", "--max-steps", "3")

    def test_prints_the_origin_of_every_setting_and_writes_nothing(self, small_shapes, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "recipe.toml").write_text('lr = 1e-4\nseed = 3\nprecision = "float32"\n')
        assert cli.main(["train", "--dry-run", "--config", "recipe.toml", "--seed", "5", *self.FLAGS]) == 0
        out = capsys.readouterr().out
        rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("  ")}
        assert rows["lr"] == ["0.0001", "file"]
        assert rows["seed"] == ["5", "flag"]
        assert rows["batch_size"] == ["8", "flag"]
        assert rows["warmup_fraction"] == ["0.1", "default"]
        assert rows["epochs"] == ["10", "default", "for", "this", "preset", "and", "dataset"]
        assert rows["device"] == ["cpu", "flag"]
        assert rows["preset"] == ["bert_vit_tiny", "default"]
        assert "nothing was written" in out
        assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]

    def test_errors_equal_those_of_a_run(self, tmp_path, capsys):
        assert cli.main(["train", "--dry-run", "--data", str(tmp_path / "none")]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
