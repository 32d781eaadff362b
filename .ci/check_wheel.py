"""What an installed wheel must do, run by the Python that it is installed in.

    python check_wheel.py cpp numba reference

Each backend named must be there, and all that are there train the same few steps to the same bound.
"""

from __future__ import annotations

import sys

from sklearn.datasets import load_digits

from fastvae import VAE, __version__, backends

LARGEST_DIFFERENCE = 0.01  # nats per datapoint, of float32 after six steps

rows = load_digits().data[:600] / 16
bounds = {}
for name in backends.NAMES:
    if reason := backends.unavailable(name):
        print(f"{name}: {reason}")
        if name in sys.argv[1:]:
            sys.exit(f"the wheel lacks the backend {name}")
    else:
        vae = VAE(latent_dim=2, hidden_dims=(16,), n_epochs=1, backend=name, verbose=0, random_state=0).fit(rows)
        bounds[name] = vae.score(rows)
        print(f"{name}: {vae.n_steps_} steps, bound {bounds[name]:.4f} nats per datapoint")
if not max(bounds.values()) - min(bounds.values()) < LARGEST_DIFFERENCE:
    sys.exit("the backends disagree")
print(f"fastvae {__version__} works")
