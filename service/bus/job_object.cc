// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/bus/job_object.h"

namespace checkpointd {

Caller current_caller(const sdbus::IObject& object) {
    const auto& message = bus::current_message(object);
    return {message.getSender(), message.getCredsUid()};
}

sdbus::ObjectPath JobObject::path(uint32_t id) {
    return sdbus::ObjectPath{bus::kJobPathPrefix + std::to_string(id)};
}

JobObject::JobObject(bus::Connection& connection, const Job& job, Manager& manager,
                     Authority& authority)
    : AdaptorInterfaces(connection, path(job.id())), job_(job), manager_(manager),
      authority_(authority) {
    registerAdaptor();
}

JobObject::~JobObject() { unregisterAdaptor(); }

void JobObject::changed(const std::vector<std::string>& properties) {
    bus::emit_changed(getObject(), INTERFACE_NAME, properties);
}

void JobObject::Cancel(sdbus::Result<>&& result) {
    auto reply = std::make_shared<sdbus::Result<>>(std::move(result));
    const Caller caller = current_caller(getObject());
    // By id: the job may be forgotten while polkit asks for a password.
    auto cancel = [&manager = manager_, id = job_.id(), reply](checkpointd::Result<void> allowed) {
        auto done = allowed ? manager.cancel(id) : std::move(allowed);
        done ? reply->returnResults() : reply->returnError(bus::to_bus(done.error()));
    };
    if (caller.uid == job_.request().caller_uid) return cancel({});
    authority_.check(caller, std::string(to_string(job_.request().type)),
                     {{"unit", job_.request().unit}}, cancel);
}

std::string JobObject::ErrorName() {
    if (!job_.finished() || job_.result().ok) return {};
    return bus::kErrorPrefix + std::string(to_string(job_.result().error.kind));
}

std::string JobObject::ErrorMessage() {
    if (!job_.finished() || job_.result().ok) return {};
    return job_.result().error.text();
}

std::map<std::string, sdbus::Variant> JobObject::Result() {
    if (!job_.finished() || !job_.result().ok) return {};
    const JobResult& result = job_.result();
    return {{"Image", bus::variant(result.image_id)},
            {"FrozenUsec", bus::variant(result.frozen_usec)},
            {"TotalUsec", bus::variant(result.total_usec)},
            {"Bytes", bus::variant(result.bytes)},
            {"Pages", bus::variant(result.pages)},
            {"MainPid", bus::variant(static_cast<uint32_t>(result.main_pid))},
            {"PidNamespace", bus::variant(result.pid_namespace)}};
}

}  // namespace checkpointd
