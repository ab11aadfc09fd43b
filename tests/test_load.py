"""Networks from files: what loads, and what is refused."""

from __future__ import annotations

import contextlib
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn

import subprune_fx
from subprune_fx.errors import SubpruneError
from subprune_fx.formats.load import load_model

SHAPE = (3, 6, 6)
ARCH = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 16, 5)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).view(x.size(0), -1))

def make():
    return Net()

instance = Net()
number = 3

def needs(width):
    return Net()

def wrong():
    return "a string"
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    return nn.Sequential(*layers).eval()


class Local(nn.Module):
    """A class that no allow-list has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


@pytest.fixture
def arch(tmp_path: Path) -> Path:
    path = tmp_path / "net_definition.py"
    path.write_text(ARCH)
    return path


def inputs(batch: int = 2) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(1))


def save_module(path: Path) -> None:
    torch.save(network(), path)


def save_legacy(path: Path) -> None:
    torch.save(network(), path, _use_new_zipfile_serialization=False)


def save_legacy_state(path: Path) -> None:
    torch.save(network().state_dict(), path, _use_new_zipfile_serialization=False)


def save_archive(path: Path) -> None:
    dynamic = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network(), (inputs(),), dynamic_shapes=dynamic), path)


def save_fixed_archive(path: Path) -> None:
    torch.export.save(torch.export.export(network(), (inputs(1),)), path)


SAVERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "nn.Module": ("net.pt", save_module),
    "torch.export archive": ("net.pt2", save_archive),
    "fixed batch": ("fixed.pt2", save_fixed_archive),
}


@pytest.mark.parametrize("name", SAVERS)
def test_formats_give_the_saved_network_in_eval_mode(name: str, tmp_path: Path) -> None:
    file, save = SAVERS[name]
    save(tmp_path / file)
    loaded = load_model(tmp_path / file)
    with torch.no_grad():
        for batch in (1, 2, 5):  # an archive exported for one sample takes any number too
            assert torch.allclose(loaded.module(inputs(batch)), network()(inputs(batch)), atol=1e-6)
    assert not any(part.training for part in loaded.module.modules())
    assert all(weight.requires_grad for weight in loaded.module.parameters())


def test_archive_says_its_input_shape(tmp_path: Path) -> None:
    save_archive(tmp_path / "net.pt2")
    loaded = load_model(tmp_path / "net.pt2")
    assert [(taken.sample, taken.accepts) for taken in loaded.takes] == [((2, *SHAPE), (None, *SHAPE))]


def test_archive_in_which_samples_mix_keeps_its_batch(tmp_path: Path) -> None:
    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    torch.export.save(torch.export.export(Mixing(), (torch.randn(4, 3),)), tmp_path / "net.pt2")
    loaded = load_model(tmp_path / "net.pt2")
    assert loaded.takes[0].accepts == (4, 3)


def test_graph_module_needs_trust(tmp_path: Path) -> None:
    torch.save(fx.symbolic_trace(network()), tmp_path / "net.pt")
    with pytest.raises(SubpruneError, match=r"fx\.GraphModule.*--trust"):
        load_model(tmp_path / "net.pt")
    loaded = load_model(tmp_path / "net.pt", trust=True)
    assert isinstance(loaded.module, fx.GraphModule)
    assert torch.equal(loaded.module(inputs()), network()(inputs()))


@pytest.mark.parametrize("name", ["Net", "make", "instance"])
@pytest.mark.parametrize("wrap", ["plain", "half", "state_dict", "nested", "data_parallel", "legacy"])
def test_state_dict(name: str, wrap: str, arch: Path, tmp_path: Path) -> None:
    state = load_arch(arch).state_dict()
    content = {
        "plain": state,
        "half": {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
        "state_dict": {"epoch": 3, "state_dict": state},
        "nested": {"model": {"state_dict": state}, "optimizer": {"lr": 0.1}},
        "data_parallel": {f"module.{key}": value for key, value in state.items()},
        "legacy": state,
    }[wrap]
    torch.save(content, tmp_path / "net.pt", _use_new_zipfile_serialization=wrap != "legacy")
    loaded = load_model(tmp_path / "net.pt", arch=f"{arch}:{name}")
    assert loaded.kind == "state dict"
    for key, value in loaded.module.state_dict().items():
        # float16 keeps 11 bits
        assert torch.allclose(value.double(), state[key].double(), rtol=2**-10 if wrap == "half" else 0, atol=1e-6)
    assert {weight.dtype for weight in loaded.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("wrap", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_go_and_those_of_the_network_stay(wrap: str, tmp_path: Path) -> None:
    made = ("Net = lambda: nn.ModuleDict({'module': nn.Linear(3, 2)})", "Plain = lambda: nn.Linear(3, 2)")
    (tmp_path / "wrapped.py").write_text("\n".join(("from torch import nn", *made)))
    layer = nn.Linear(3, 2)
    for name, network in (("Net", nn.ModuleDict({"module": layer})), ("Plain", layer)):
        torch.save({f"{wrap}{key}": value for key, value in network.state_dict().items()}, tmp_path / "net.pt")
        loaded = load_model(tmp_path / "net.pt", arch=f"{tmp_path}/wrapped.py:{name}").module.state_dict()
        assert loaded.keys() == network.state_dict().keys()
        assert all(torch.equal(value, loaded[key]) for key, value in network.state_dict().items())


def test_safetensors(arch: Path, tmp_path: Path) -> None:
    state = load_arch(arch).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors", arch=f"{arch}:Net")
    for key, value in loaded.module.state_dict().items():
        assert torch.equal(value, state[key])
    with pytest.raises(SubpruneError, match=r"state dict.*--arch"):
        load_model(tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-8])
    with pytest.raises(SubpruneError, match="no safetensors file, or a damaged one"):
        load_model(tmp_path / "model.safetensors")


def test_a_state_dict_may_not_claim_what_is_not_there(arch: Path, tmp_path: Path) -> None:
    state = {**load_arch(arch).state_dict(), "head.bias": torch.zeros(1, dtype=torch.float16).expand(10**11)}
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(SubpruneError, match="more than half of this machine's memory"):
        load_model(tmp_path / "net.pt", arch=f"{arch}:Net")


def test_a_plan_is_no_network(tmp_path: Path) -> None:
    subprune_fx.prune(network(), inputs(), keep=0.5).plan.save(tmp_path / "net.plan")
    with pytest.raises(SubpruneError, match=r"is a plan, not a network.*--plan"):
        load_model(tmp_path / "net.plan")


def load_arch(path: Path) -> nn.Module:
    scope: dict[str, object] = {"__name__": "definition"}
    exec(path.read_text(), scope)  # our own text above
    torch.manual_seed(0)
    made = scope["make"]()  # type: ignore[operator]
    assert isinstance(made, nn.Module)
    return made


def test_arch_of_a_package(arch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save(load_arch(arch).state_dict(), tmp_path / "net.pt")
    assert load_model(tmp_path / "net.pt", arch="net_definition:Net").kind == "state dict"


@pytest.mark.parametrize("trust", [False, True])
def test_arch_defines_the_classes_of_a_pickled_network(trust: bool, arch: Path, tmp_path: Path) -> None:
    """As after a training script that calls `torch.save(model, ...)`: the file says `__main__.Net`."""
    target = tmp_path / "net.pt"
    script = f"{ARCH}\nnet = Net()\ntorch.save(net, {str(target)!r})\n"
    import __main__  # noqa: PLC0415

    scope = vars(__main__)
    before = dict(scope)
    try:
        exec(compile(script, "script", "exec"), scope)
    finally:
        scope.clear()
        scope.update(before)
    with pytest.raises(SubpruneError, match="--arch"):
        load_model(target, trust=trust)
    loaded = load_model(target, arch=f"{arch}:Net", trust=trust)
    assert loaded.module(inputs()).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("{arch}", "names nothing"),
        ("{arch}:Missing", r"has no 'Missing' \(it has: Net\)"),
        ("{arch}:needs", "needs.. fails: TypeError"),
        ("{arch}:wrong", "returned str"),
        ("{arch}:number", "is int, not a network"),
        ("nowhere.py:Net", "no such file"),
        ("no_such_package.there:Net", "cannot be imported"),
    ],
)
def test_arch_refusals(name: str, says: str, arch: Path, tmp_path: Path) -> None:
    torch.save(load_arch(arch).state_dict(), tmp_path / "net.pt")
    with pytest.raises(SubpruneError, match=says):
        load_model(tmp_path / "net.pt", arch=name.format(arch=arch))


def test_arch_that_fails_to_import(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    torch.save({"w": torch.zeros(2)}, tmp_path / "net.pt")
    with pytest.raises(SubpruneError, match="ZeroDivisionError"):
        load_model(tmp_path / "net.pt", arch=f"{tmp_path}/broken.py:Net")


def test_state_dict_that_does_not_fit_lists_keys(arch: Path, tmp_path: Path) -> None:
    state = dict(load_arch(arch).state_dict())
    state["extra.weight"] = state.pop("head.weight")
    state["conv.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(SubpruneError, match=r"1 missing \(head\.weight\).*extra\.weight.*other shape \(conv\.bias\)"):
        load_model(tmp_path / "net.pt", arch=f"{arch}:Net")


# Refusals: file name -> (how to make it, what is said).


def _bytes(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _truncated(save: Callable[[Path], None], keep: float) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        save(path)
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])

    return make


def _script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(network(), inputs()), path)  # type: ignore[no-untyped-call]


def _nan(path: Path) -> None:
    net = network()
    next(net.parameters()).data[0] = float("nan")
    torch.save(net, path)


class Two(nn.Module):
    """Tokens and a vector, and outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 5)

    def forward(self, tokens: Tensor, vector: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        return {"score": self.mix(self.table(tokens).mean(1) + vector) * scale}


def _scalar_input(path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, by: Tensor) -> Tensor:
            return x * by

    torch.export.save(torch.export.export(Scaled(), (torch.zeros(2), torch.tensor(2.0))), path)


def two_inputs(batch: int) -> tuple[Tensor, Tensor]:
    return torch.arange(3 * batch).reshape(batch, 3) % 7, torch.randn(batch, 4)


@pytest.mark.parametrize("named", [False, True])
def test_archive_with_several_inputs(named: bool, tmp_path: Path) -> None:
    tokens, vector = two_inputs(3)
    program = (
        torch.export.export(Two(), (), {"vector": vector, "tokens": tokens})
        if named
        else torch.export.export(Two(), (tokens, vector))
    )
    torch.export.save(program, tmp_path / "two.pt2")
    loaded = load_model(tmp_path / "two.pt2")
    takes = {taken.name: (taken.sample, taken.accepts, taken.dtype) for taken in loaded.takes}
    assert takes == {
        "tokens": ((3, 3), (None, 3), torch.int64),  # a sample is as alone among 3 as among 7
        "vector": ((3, 4), (None, 4), torch.float32),
    }
    wanted = program.module()(vector=vector, tokens=tokens) if named else program.module()(tokens, vector)
    assert torch.equal(loaded.module(tokens=tokens, vector=vector)["score"], wanted["score"])
    assert len(loaded.module(tokens=tokens[:2], vector=vector[:2])["score"]) == 2


def test_modules_say_their_arguments(tmp_path: Path) -> None:
    torch.save(Two().state_dict(), tmp_path / "two.pt")
    loaded = load_model(tmp_path / "two.pt", arch=f"{__file__}:Two")
    assert [(taken.name, taken.required) for taken in loaded.takes] == [
        ("tokens", True),
        ("vector", True),
        ("scale", False),
    ]


def _npz(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"")


def _claims(path: Path) -> None:
    """One number, said to be 10^11 of them."""
    broad = network()
    broad.register_buffer("broad", torch.zeros(1).expand(10**11))
    torch.save(broad, path)


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.pt": (lambda path: None, "no such file"),
    "folder.pt": (lambda path: path.mkdir(), "is a folder"),
    "empty.pt": (_bytes(b""), "is empty"),
    "image.pt": (_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 64), "is not a PyTorch file"),
    "text.pt2": (_bytes(b"hello"), "is not a PyTorch file"),
    "net.onnx": (_bytes(b"\x08\x08\x12\x04"), "not an ONNX model, or a damaged one"),
    "plain.pt": (_bytes(pickle.dumps({"a": 1})), "that torch.save did not write"),
    "arrays.pt": (_npz, "numpy arrays"),
    "cut.pt": (_truncated(save_module, 0.5), "truncated"),
    "cut.pt2": (_truncated(save_archive, 0.7), "truncated"),
    "legacy.pth": (save_legacy, "before torch 1.6.*--trust"),
    "cut.pth": (_truncated(save_legacy_state, 0.6), "damaged or truncated"),
    "script.pt": (_script, "TorchScript.*--arch"),
    "state.pt": (lambda path: torch.save(network().state_dict(), path), "state dict.*--arch"),
    "list.pt": (lambda path: torch.save([1, 2], path), "holds a list"),
    "dict.pt": (lambda path: torch.save({"epoch": 1}, path), "holds a dict with the keys epoch"),
    "local.pt": (lambda path: torch.save(Local(), path), r"Local.*--arch.*--trust"),
    "broad.pt": (_claims, "more than half of this machine's memory; save it again"),
    "nan.pt": (_nan, r"NaN or infinite weights \(0\.weight\)"),
    "scalar.pt2": (_scalar_input, "not tensors with a batch axis"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_one_line(name: str, tmp_path: Path) -> None:
    make, says = REFUSALS[name]
    make(tmp_path / name)
    with pytest.raises(SubpruneError, match=says) as caught:
        load_model(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_archive_with_arch_is_refused(arch: Path, tmp_path: Path) -> None:
    save_archive(tmp_path / "net.pt2")
    with pytest.raises(SubpruneError, match="--arch does not apply"):
        load_model(tmp_path / "net.pt2", arch=f"{arch}:Net")


@pytest.mark.parametrize("save", [save_module, save_legacy, save_legacy_state, save_archive])
def test_damaged_bytes_raise_nothing_else(save: Callable[[Path], None], tmp_path: Path) -> None:
    """Random damage either goes unnoticed or is a SubpruneError."""
    path = tmp_path / "net.pt"
    save(path)
    whole = path.read_bytes()
    generator = random.Random(0)
    for _ in range(25):
        damaged = bytearray(whole)
        for _ in range(generator.choice((1, 4, 64))):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        keep = generator.choice((len(damaged), generator.randrange(1, len(damaged))))
        path.write_bytes(damaged[:keep])
        with contextlib.suppress(SubpruneError):
            load_model(path)
