// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/bus/authority.h"

namespace checkpointd {
namespace {

constexpr const char* kInterface = "org.freedesktop.PolicyKit1.Authority";
constexpr uint32_t kAllowUserInteraction = 1;
// People need time to type a password.
constexpr std::chrono::minutes kPatience{3};

using Subject = sdbus::Struct<std::string, bus::VariantMap>;
using Answer = sdbus::Struct<bool, bool, std::map<std::string, std::string>>;

tl::unexpected<Error> denied(const std::string& action, std::string why, std::string remedy) {
    return fail(ErrorKind::kDenied, "org.checkpointd1." + action, std::move(why), std::move(remedy));
}

Result<void> judge(const std::string& action, const Answer& answer) {
    if (std::get<0>(answer)) return {};
    if (std::get<1>(answer))
        return denied(action, "polkit wants to authenticate you, but found no agent that could ask",
                      "run it as root, or with pkttyagent(1) running");
    return denied(action, "polkit does not allow it", "run it as root, or add a polkit rule");
}

}  // namespace

Authority::Authority(bus::Connection& connection)
    : polkit_(bus::make_proxy(connection, "org.freedesktop.PolicyKit1",
                              "/org/freedesktop/PolicyKit1/Authority")) {}

void Authority::check(const Caller& caller, const std::string& action,
                      const std::map<std::string, std::string>& details, Decision decide) {
    if (caller.uid == 0) return decide({});
    bus::VariantMap who{{"name", bus::variant(caller.name)}};
    auto answered = [action, decide = std::move(decide)](bus::AsyncError error, const Answer& answer) {
        if (error)
            return decide(denied(action, "only root may do this: polkit does not answer (" +
                                             std::string(error->getMessage()) + ")",
                                 "run it as root"));
        decide(judge(action, answer));
    };
    polkit_->callMethodAsync("CheckAuthorization")
        .onInterface(kInterface)
        .withTimeout(kPatience)
        .withArguments(Subject{"system-bus-name", std::move(who)}, "org.checkpointd1." + action,
                       details, kAllowUserInteraction, std::string())
        .uponReplyInvoke(std::move(answered));
}

}  // namespace checkpointd
