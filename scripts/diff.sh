#!/bin/sh
# What a branch changed in results, parameters and data, in Markdown, for a pull request. Usage: sh scripts/diff.sh BASE   (a commit or branch)
set -eu
echo "### Results against $1"
echo
dvc metrics diff --md "$1"
echo
echo "### Parameters"
echo
dvc params diff --md "$1"
echo
luthier data-diff "$1" 2>&1 || true # a base without results is told, and no error
