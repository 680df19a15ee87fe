"""Writes tests/parity/data/dit.safetensors: ``python -m tests.parity.dit_record`` where PyTorch is installed."""

from safetensors.numpy import save_file

from tests.parity import dit, dit_case


def main() -> None:
    tensors = {}
    for case, per_token in (("clip", False), ("token", True)):
        results = dit.results(dit_case.CONFIG, dit_case.inputs(per_token=per_token))
        tensors[f"{case}/velocity"] = results["velocity"]
        if not per_token:
            tensors.update({f"{case}/gradients/{name}": value for name, value in results["gradients"].items()})
    dit_case.RECORDED.parent.mkdir(exist_ok=True)
    save_file(tensors, dit_case.RECORDED)
    print(f"{dit_case.RECORDED}: {len(tensors)} tensors, {dit_case.RECORDED.stat().st_size} bytes")


if __name__ == "__main__":
    main()
