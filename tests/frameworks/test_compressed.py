"""What `modelfs compress` writes, torch loads: checksums, shared storages and dtypes are right."""

from __future__ import annotations

from pathlib import Path

import torch
from mount.mounting import Mounter

from modelfs.transforms import Affine, transform_array


def test_torch_loads_a_compressed_checkpoint_with_what_is_shared_and_transposed(mount: Mounter, tmp_path: Path) -> None:
    torch.manual_seed(1)
    tied = torch.randn(200, 64)
    state = {"embed": tied, "head": tied, "turned": torch.randn(64, 128).t(), "half": torch.randn(90, 100).bfloat16(),
             "ids": torch.arange(9000).reshape(90, 100), "step": 3}
    torch.save(state, tmp_path / "x.pt")
    torch.save(torch.nn.Linear(128, 64), tmp_path / "module.pt")
    for name in ("x.pt", "module.pt"):
        done = mount.run("compress", tmp_path / name, tmp_path / f"made-{name}", "--recipe", "int8")
        assert done.returncode == 0, done.stderr
    made = torch.load(tmp_path / "made-x.pt", weights_only=True)
    assert made["embed"].data_ptr() == made["head"].data_ptr()
    for name in ("embed", "turned"):
        array = state[name].t().contiguous().numpy() if name == "turned" else state[name].numpy()
        found = made[name].t() if name == "turned" else made[name]
        assert torch.equal(found, torch.from_numpy(transform_array(Affine(8), array).values)), name
    assert made["half"].dtype == torch.bfloat16 and not torch.equal(made["half"], state["half"])
    assert torch.equal(made["ids"], state["ids"]) and made["step"] == 3
    before, after = (torch.load(tmp_path / name, weights_only=False).weight for name in ("module.pt", "made-module.pt"))
    assert 0 < float((before - after).detach().abs().max()) < 0.001
