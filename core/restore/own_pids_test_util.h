// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

namespace checkpointd {

// For main() of a test that makes processes with PIDs of its choice: runs all tests in a PID namespace of
// their own, where nobody else takes those numbers, under an init that reaps orphans. Without the
// privilege for that, or when only asked to list tests, they run as they are.
int run_tests_with_own_pids(int argc, char** argv);

}  // namespace checkpointd
