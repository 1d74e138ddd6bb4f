// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

namespace checkpointd::testing {

// Whether this test was built with AddressSanitizer. Its runtime makes system calls of its own at
// any moment and reserves terabytes of address space: neither suits a process under a killing
// filter or one that is dumped. A test that cannot live with that says GTEST_SKIP() and why.
constexpr bool under_sanitizer() {
#if defined(__SANITIZE_ADDRESS__)
    return true;
#elif defined(__has_feature)
    return __has_feature(address_sanitizer);
#else
    return false;
#endif
}

}  // namespace checkpointd::testing
