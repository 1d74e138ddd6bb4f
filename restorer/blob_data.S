/* SPDX-License-Identifier: LGPL-2.1-or-later */
    .section .rodata
    .balign 16
    .globl checkpointd_blob_begin
    .globl checkpointd_blob_end
checkpointd_blob_begin:
    .incbin "checkpointd-blob.bin"
checkpointd_blob_end:
    .section .note.GNU-stack, "", @progbits
