// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What runs in a task while its memory is replaced: the interpreter and nothing else. Linked at address
// 0 as a flat, position independent binary without data; see blob.ld.
#include "restorer/interpreter.h"

using namespace checkpointd::restorer;

extern "C" [[noreturn]] __attribute__((section(".text.entry"))) void checkpointd_blob_entry(
    RegionHeader* header, uint64_t program) {
    Interpreter(*header, Place::kBlob).run_to_end(static_cast<uint32_t>(program));
}

// The compiler may turn loops and initialisers into these calls even in freestanding code (GCC manual,
// "Standards").
extern "C" void* memset(void* to, int byte, size_t size) {
    auto* out = static_cast<volatile unsigned char*>(to);
    for (size_t i = 0; i < size; i++)
        out[i] = static_cast<unsigned char>(byte);
    return to;
}

extern "C" void* memcpy(void* __restrict to, const void* __restrict from, size_t size) {
    auto* out = static_cast<volatile unsigned char*>(to);
    auto* in = static_cast<const volatile unsigned char*>(from);
    for (size_t i = 0; i < size; i++)
        out[i] = in[i];
    return to;
}
