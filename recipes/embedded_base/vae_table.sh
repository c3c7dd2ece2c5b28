#!/usr/bin/env bash
# Four autoencoders at a short equal budget, for the table in RESULTS.md: f4 and f8, 4 and 8 channels.
set -euo pipefail
cd "$(dirname "$0")/../.."
config=recipes/embedded_base/configs/vae_table.toml
for channels in 4 8; do
  for factor in f4 f8; do
    shape="[32, 48, 64, 64]"
    [ "$factor" = f4 ] && shape="[32, 48, 64]"
    out="work/table/${factor}c${channels}"
    [ -d "$out/vae" ] && continue
    lorasmith pretrain vae "$config" --set "train.output_dir=$out" --set "architecture.block_out_channels=$shape" \
      --set "architecture.latent_channels=$channels"
  done
done
