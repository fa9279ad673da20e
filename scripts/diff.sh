#!/bin/sh
# What a branch changed in results and parameters, in Markdown, for a pull request. Usage: sh scripts/diff.sh BASE   (a commit or branch)
set -eu
echo "### Results against $1"
echo
dvc metrics diff --md "$1"
echo
echo "### Parameters"
echo
dvc params diff --md "$1"
