# What a contributor types. `just` alone lists it; `bash .ci/run` is all of it, as the CI runs it.

_list:
    @just --list --unsorted

# The gateway of your own configuration, optimised.
run *arguments:
    cargo run --release -- gateway {{arguments}}

# All tests; those with the real clients say SKIPPED until `just interop` has installed them.
test *arguments:
    cargo test {{arguments}}

# Format, clippy, and what may be in the tree.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo deny check bans licenses sources

# The real OpenClaw CLI, node host and reference client against clawgate.
interop *arguments:
    npm --prefix tests/interop ci --ignore-scripts
    cargo test --test interop {{arguments}}

# One fuzz target (`cargo fuzz list` names them).
fuzz target seconds="60":
    cargo +nightly fuzz run {{target}} -- -max_total_time={{seconds}}

# Criterion's benches; one by its name.
bench *arguments:
    cargo bench {{arguments}}
