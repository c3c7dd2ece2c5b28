#!/usr/bin/env bash
# Rebuild the embedded model from public npm packages: data, seven trainings, package, report.
#
#   bash recipes/embedded_base/rebuild.sh [--toy] [--data DATA] [--work DIR] [--out DIR]
#
# Without options it works below work/ and writes src/lorasmith/embedded. Trainings whose result
# exists are skipped, and interrupted ones go on from their newest checkpoint. --toy trains tiny
# networks on the demo's pictures for a few steps on the CPU, to see every step work; it leaves
# the shipped model alone.
#
# LORASMITH_RECIPE_SET: further settings of all trainings, separated by spaces, for instance
# "train.stop_after_minutes=10 train.checkpoint_every_n_steps=500"; LORASMITH_RECIPE_SET_CLIP, _VAE,
# _VAE_DECODER, _VAE_BOTH, _UNET, _UNET_LONGER and _UNET_FINISH: those of one.
set -euo pipefail
cd "$(dirname "$0")/../.."
recipe=recipes/embedded_base

fail() {
  echo "error: $*" >&2
  exit 1
}

toy=no work="" out="" data=""
while [ $# -gt 0 ]; do
  case $1 in
    --toy) toy=yes ;;
    --data | --work | --out)
      [ $# -ge 2 ] || fail "$1 needs a value"
      declare "${1#--}=$2"
      shift
      ;;
    *) fail "unknown option $1; the head of $recipe/rebuild.sh lists them" ;;
  esac
  shift
done
if [ "$toy" = yes ]; then
  work=${work:-work/toy} out=${out:-$work/embedded} results=$work data=${data:-src/lorasmith/demo_data}
else
  work=${work:-work} out=${out:-src/lorasmith/embedded} results=$recipe
fi
clip=$work/clip vae=$work/vae decoder=$work/vae_decoder unet=$work/unet longer=$work/unet_longer
both=$work/vae_both finish=$work/unet_finish

command -v lorasmith > /dev/null || fail "there is no lorasmith command; run \`make embedded-base\`"

# What makes a training a toy.
toy_settings() {
  echo "train.device=cpu train.mixed_precision=fp32 train.compile=false train.cuda_graph=false train.batch_size=8"
  echo "train.steps=4 train.lr_warmup_steps=1 train.ema_decay=0.5 train.tensorboard=false"
  [ -f "$data" ] || echo "data.filters=[] data.flip_filters=[] data.weights=[]"
  case $1 in
    clip)
      echo "resolution=64 projection_dim=32 image_encoder.block_out_channels=[8,8,16,16]"
      echo "text_encoder.hidden_size=32 text_encoder.num_hidden_layers=1 text_encoder.num_attention_heads=2 text_encoder.intermediate_size=64"
      ;;
    vae) echo "resolution=64 architecture.block_out_channels=[16,16,16,16] architecture.norm_num_groups=8" ;;
    vae_decoder | vae_both)
      echo "resolution=64 architecture.block_out_channels=[16,16,16,16] architecture.norm_num_groups=8"
      echo "loss.discriminator_channels=8 loss.adversarial_start_step=2"
      ;;
    unet | unet_longer | unet_finish) echo "stages=[{resolution=64,steps=4}] architecture.block_out_channels=[32,32,64,64] architecture.attention_head_dim=4" ;;
  esac
}

# train PART CONFIG FOLDER SETTING...: one training, unless its result is there.
train() {
  local part=$1 config=$2 folder=$3 settings own more=() options=()
  shift 3
  if [ -f "$folder/finished" ]; then
    echo "$folder: finished earlier"
    return
  fi
  own=LORASMITH_RECIPE_SET_${config^^}
  settings="${LORASMITH_RECIPE_SET:-} ${!own:-}"
  if [ "$toy" = yes ]; then settings="$(toy_settings "$config") $settings"; fi
  read -r -d '' -a more <<< "$settings" || true
  for setting in "data.path=$data" "train.output_dir=$folder" "$@" "${more[@]}"; do
    options+=(--set "$setting")
  done
  if compgen -G "$folder/checkpoints/step-*/manifest.json" > /dev/null; then
    options+=(--resume)
  fi
  echo "$folder: training"
  lorasmith pretrain "$part" "$recipe/configs/$config.toml" "${options[@]}"
  touch "$folder/finished"
}

# 1. The pictures.
if [ -z "$data" ]; then
  data=$work/emoji128.tar
  if [ ! -f "$data" ]; then
    command -v npm > /dev/null || fail "npm is needed to download the pictures: install Node.js first"
    python -m pip install --quiet --disable-pip-version-check -r $recipe/data/requirements.txt
    mkdir -p "$work"
    python $recipe/data/build.py --work "$work/data" --out "$data.partial"
    mv "$data.partial" "$data"
  fi
fi
[ -e "$data" ] || fail "$data: no such file or folder"

# 2. Text and image towers; the autoencoder, then its decoder alone; the U-Net; then the whole
# autoencoder again, and the U-Net on its new latents.
train clip clip "$clip"
train vae vae "$vae"
train vae vae_decoder "$decoder" "train.start_from=$vae" "loss.perceptual_encoder=$clip"
train unet unet "$unet" "vae=$vae" "text_encoder=$clip"
train unet unet_longer "$longer" "train.start_from=$unet" "vae=$vae" "text_encoder=$clip"
train vae vae_both "$both" "train.start_from=$decoder" "loss.perceptual_encoder=$clip"
train unet unet_finish "$finish" "train.start_from=$longer" "vae=$both" "text_encoder=$clip"

# 3. The model, and the hash of every row that any part of it was trained on.
for folder in "$vae" "$decoder" "$unet" "$longer" "$both" "$finish"; do
  cmp -s "$clip/manifest.tsv" "$folder/manifest.tsv" \
    || fail "$folder was trained on other rows than $clip; delete one of them and start again"
done
mkdir -p "$results"
cp "$clip/manifest.tsv" "$results/manifest.tsv"
python $recipe/package.py --unet "$finish" --vae "$both" --clip "$clip" --out "$out"

# 4. What it can do, beside the autoencoder before its last training and after the same without the
# perceptual and adversarial terms; a toy can do nothing. The table of autoencoder shapes is trained
# below work/.
if [ "$toy" = yes ]; then exit; fi
plain=$work/vae_plain
train vae vae_both "$plain" "train.start_from=$decoder" "loss.perceptual_weight=0" "loss.adversarial_weight=0" \
  "train.steps=3000"
measured=(--vae "before the last training=$decoder")
measured+=(--vae "last training by pixels and gradients only=$plain")
measured+=(--unet "without averaging=$finish/unet_without_ema")
if [ "$work" = work ]; then bash $recipe/vae_table.sh; fi
for folder in "$work"/table/*; do
  if [ -d "$folder/vae" ]; then measured+=(--table "${folder##*/}=$folder"); fi
done
lorasmith pretrain report $recipe/configs/unet.toml --set "data.path=$data" --model "$out" \
  "${measured[@]}" --out "$results/RESULTS.md"
