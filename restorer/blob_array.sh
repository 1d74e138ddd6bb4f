#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# usage: blob_array.sh FILE -- prints the file's bytes as C initialisers
od -An -v -tx1 "$1" | sed 's/ \([0-9a-f][0-9a-f]\)/0x\1,/g'
