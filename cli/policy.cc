// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fcntl.h>

#include <fmt/core.h>

#include "cli/verbs.h"
#include "config/policy/policy.h"
#include "core/base/io.h"

namespace checkpointd::cli {
namespace {


// Needs no daemon: a policy is checked before it is put in place.
Result<void> check(const std::string& file, const Global& global) {
    Policy policy;
    if (file.empty()) {
        CKPT_ASSIGN(policy, load_policy(kVendorPolicyDir, kAdminPolicyDir));
    } else {
        CKPT_ASSIGN(auto text, read_file(AT_FDCWD, file));
        CKPT_TRY(merge_policy(policy, text, file));
        policy.files.push_back(file);
    }
    if (global.json) print_fields({{"Files", policy.files}, {"Valid", true}});
    else
        for (const std::string& name : policy.files) fmt::print("{}: ok\n", name);
    return {};
}

Result<void> show(const std::string& unit, const Global& global) {
    CKPT_ASSIGN(auto client, Client::connect());
    CKPT_ASSIGN(auto text, client.policy(unit));
    if (global.json) print_fields({{"Unit", unit}, {"Policy", text}});
    else fmt::print("{}", text);
    return {};
}

Result<void> reload() {
    CKPT_ASSIGN(auto client, Client::connect());
    return client.reload_policy();
}

}  // namespace

void add_policy(CommandLine& line, const Global& global, const Choose& choose) {
    auto name = std::make_shared<std::string>();
    auto verb = line.add_verb("policy", "Check and show the policy");
    verb.require_verbs(1, 1);
    auto check_verb = verb.add_verb("check", "Check a policy file, or all that are in place");
    check_verb.add_text("FILE", *name, "file to check");
    check_verb.when_chosen([=, &global] { choose([=, &global] { return check(*name, global); }); });
    auto show_verb = verb.add_verb("show", "Print what holds for a unit");
    show_verb.add_text("UNIT", *name, "name of a unit", Presence::kRequired);
    show_verb.when_chosen([=, &global] { choose([=, &global] { return show(*name, global); }); });
    auto reload_verb = verb.add_verb("reload", "Make the daemon read the policy again");
    reload_verb.when_chosen([=] { choose([] { return reload(); }); });
}

}  // namespace checkpointd::cli
