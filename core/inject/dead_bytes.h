// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <vector>

#include "core/inject/remote_syscalls.h"
#include "core/inject/seize.h"

namespace checkpointd {

// An address in executable memory of the process with kStubSize bytes that nobody needs: zeros at the very end
// of the vdso or of a file's private executable mapping, or a stub that a dead injector left there and that no
// thread of the process stands in or will return to. kUnsupported where there is none. Remembered in the
// process, as long as it is zero again at the next call.
Result<uint64_t> find_dead_bytes(SeizedProcess& process, StubPlace place);

// Makes zeros again of what dead injectors left in the vdso. Call while no call is being made in the process.
// kConflict where a signal handler runs that will return into it: it must stay, and must not be dumped,
// because a restored process gets a fresh vdso.
Result<void> wipe_dead_stubs(SeizedProcess& process);

}  // namespace checkpointd
