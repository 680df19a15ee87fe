"""One version of the library is told from another."""

from wanjax import source_digest


def test_one_line_of_code_changes_the_digest_of_the_source(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/a.py").write_text("x = 1\n")
    monkeypatch.setattr(source_digest, "__file__", str(tmp_path / "source_digest.py"))
    before = source_digest.source_digest()
    (tmp_path / "models/a.py").write_text("x = 2\n")
    assert source_digest.source_digest() != before
