// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/credentials.h"

#include <sys/prctl.h>
#include <sys/syscall.h>

namespace checkpointd {
namespace {

template <typename Field>
void add_set(uint64_t set, Field& out) {
    out.Add(static_cast<uint32_t>(set));
    out.Add(static_cast<uint32_t>(set >> 32));
}

}  // namespace

Result<void> dump_credentials(const ProcStatus& status, RemoteSyscalls& remote,
                              images::creds_entry& out) {
    out.set_uid(status.uids[0]);
    out.set_euid(status.uids[1]);
    out.set_suid(status.uids[2]);
    out.set_fsuid(status.uids[3]);
    out.set_gid(status.gids[0]);
    out.set_egid(status.gids[1]);
    out.set_sgid(status.gids[2]);
    out.set_fsgid(status.gids[3]);
    for (uint32_t group : status.groups)
        out.add_groups(group);
    add_set(status.cap_inheritable, *out.mutable_cap_inh());
    add_set(status.cap_permitted, *out.mutable_cap_prm());
    add_set(status.cap_effective, *out.mutable_cap_eff());
    add_set(status.cap_bounding, *out.mutable_cap_bnd());
    add_set(status.cap_ambient, *out.mutable_cap_amb());
    if (status.no_new_privs)
        out.set_no_new_privs(1);
    CKPT_ASSIGN(uint64_t securebits, remote.call(SYS_prctl, {PR_GET_SECUREBITS}));
    out.set_secbits(static_cast<uint32_t>(securebits));
    return {};
}

}  // namespace checkpointd
