#!/bin/sh
# render.sh FOLDER: make prometheusrule.yaml of alerts.yaml, then render every overlay, and the example, into FOLDER.
set -eu
target=$1
cd "$(dirname "$0")"

monitoring=components/monitoring
{
    printf '# Made of alerts.yaml by "make manifests"; not edited.\n'
    printf 'apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: gpt-pretrain\nspec:\n'
    sed -e '/^#/d' -e 's/^\(.\)/  \1/' "$monitoring/alerts.yaml"
} >"$monitoring/prometheusrule.yaml"

mkdir -p "$target"
for folder in overlays/* example; do
    kubectl kustomize "$folder" >"$target/$(basename "$folder").yaml"
    echo "$target/$(basename "$folder").yaml"
done
