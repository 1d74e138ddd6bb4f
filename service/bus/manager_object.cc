// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/bus/manager_object.h"

namespace checkpointd {
namespace {

// A reply that callbacks can share. sdbus::Result is move-only, std::function wants copies.
template <typename... T>
auto share(sdbus::Result<T...>&& result) {
    return std::make_shared<sdbus::Result<T...>>(std::move(result));
}

template <typename Reply>
void answer_job(Reply& reply, const Result<const Job*>& job) {
    job ? reply->returnResults(JobObject::path((*job)->id()))
        : reply->returnError(bus::to_bus(job.error()));
}

}  // namespace

Options from_bus(const bus::VariantMap& options) {
    Options converted;
    for (const auto& [key, value] : options) {
        OptionValue& option = converted[key];
        option.type = value.peekValueType();
        if (option.type == "s") option.value = value.get<std::string>();
        if (option.type == "b") option.value = value.get<bool>();
        if (option.type == "t") option.value = value.get<uint64_t>();
    }
    return converted;
}

ManagerObject::ManagerObject(bus::Connection& connection, Manager& manager, std::string version)
    : AdaptorInterfaces(connection, sdbus::ObjectPath{bus::kManagerPath}), connection_(connection),
      manager_(manager), authority_(connection), version_(std::move(version)) {
    registerAdaptor();
    manager_.observe(this);
}

ManagerObject::~ManagerObject() {
    manager_.observe(nullptr);
    unregisterAdaptor();
}

Caller ManagerObject::caller() {
    manager_.touch();
    return current_caller(getObject());
}

void ManagerObject::CheckpointUnit(sdbus::Result<sdbus::ObjectPath>&& result, std::string unit,
                                   bus::VariantMap options) {
    auto reply = share(std::move(result));
    auto parsed = parse_checkpoint_options(from_bus(options), manager_.faults_allowed());
    if (!parsed) return reply->returnError(bus::to_bus(parsed.error()));
    const Caller who = caller();
    authority_.check(who, "checkpoint", {{"unit", unit}},
                     [this, reply, unit, who, options = *parsed](checkpointd::Result<void> allowed) {
                         if (!allowed) return reply->returnError(bus::to_bus(allowed.error()));
                         answer_job(reply, manager_.checkpoint(unit, options, who.uid));
                     });
}

void ManagerObject::RestoreUnit(sdbus::Result<sdbus::ObjectPath>&& result, std::string target,
                                bus::VariantMap options) {
    auto reply = share(std::move(result));
    auto parsed = parse_restore_options(from_bus(options), manager_.faults_allowed());
    if (!parsed) return reply->returnError(bus::to_bus(parsed.error()));
    const Caller who = caller();
    authority_.check(who, "restore", {{"unit", target}},
                     [this, reply, target, who, options = *parsed](checkpointd::Result<void> allowed) {
                         if (!allowed) return reply->returnError(bus::to_bus(allowed.error()));
                         answer_job(reply, manager_.restore(target, options, who.uid));
                     });
}

void ManagerObject::ReviveUnit(sdbus::Result<sdbus::ObjectPath>&& result, std::string unit) {
    auto reply = share(std::move(result));
    const Caller who = caller();
    authority_.check(who, "restore", {{"unit", unit}},
                     [this, reply, unit, who](checkpointd::Result<void> allowed) {
                         if (!allowed) return reply->returnError(bus::to_bus(allowed.error()));
                         answer_job(reply, manager_.revive(unit, who.uid));
                     });
}

void ManagerObject::EnableUnit(sdbus::Result<>&& result, std::string unit) {
    auto reply = share(std::move(result));
    auto done = [reply](checkpointd::Result<std::string> enabled) {
        enabled ? reply->returnResults() : reply->returnError(bus::to_bus(enabled.error()));
    };
    authority_.check(caller(), "enable", {{"unit", unit}},
                     [this, done, unit](checkpointd::Result<void> allowed) {
                         if (!allowed) return done(tl::unexpected(std::move(allowed).error()));
                         manager_.enable(unit, done);
                     });
}

void ManagerObject::DisableUnit(sdbus::Result<>&& result, std::string unit) {
    auto reply = share(std::move(result));
    authority_.check(caller(), "enable", {{"unit", unit}},
                     [this, reply, unit](checkpointd::Result<void> allowed) {
                         auto done = allowed ? manager_.disable(unit) : std::move(allowed);
                         done ? reply->returnResults() : reply->returnError(bus::to_bus(done.error()));
                     });
}

void ManagerObject::ListUnits(sdbus::Result<std::vector<UnitRow>>&& result) {
    manager_.touch();
    auto all = manager_.units();
    if (!all) return result.returnError(bus::to_bus(all.error()));
    std::vector<UnitRow> rows;
    for (const UnitSummary& unit : *all) rows.emplace_back(unit.unit, unit.enabled, unit.image);
    result.returnResults(rows);
}

void ManagerObject::ListImages(sdbus::Result<std::vector<ImageRow>>&& result) {
    manager_.touch();
    auto all = manager_.images().list();
    if (!all) return result.returnError(bus::to_bus(all.error()));
    std::vector<ImageRow> rows;
    for (const ImageSummary& image : *all)
        rows.emplace_back(image.id, image.unit, image.state, image.created_usec, image.bytes,
                          image.frozen_usec);
    result.returnResults(rows);
}

void ManagerObject::GetImage(sdbus::Result<bus::VariantMap>&& result, std::string id) {
    manager_.touch();
    auto image = manager_.images().get(id);
    if (!image) return result.returnError(bus::to_bus(image.error()));
    result.returnResults({{"Id", bus::variant(image->id)},
                          {"Unit", bus::variant(image->unit)},
                          {"State", bus::variant(image->state)},
                          {"Reason", bus::variant(image->reason)},
                          {"Path", bus::variant(image->path)},
                          {"CreatedUsec", bus::variant(image->created_usec)},
                          {"Bytes", bus::variant(image->bytes)},
                          {"FrozenUsec", bus::variant(image->frozen_usec)},
                          {"TotalUsec", bus::variant(image->total_usec)},
                          {"Pages", bus::variant(image->pages)},
                          {"Processes", bus::variant(image->processes)}});
}

void ManagerObject::RemoveImage(sdbus::Result<>&& result, std::string id, bus::VariantMap options) {
    auto reply = share(std::move(result));
    auto parsed = parse_remove_options(from_bus(options));
    if (!parsed) return reply->returnError(bus::to_bus(parsed.error()));
    auto done = [reply](checkpointd::Result<std::string> removed) {
        removed ? reply->returnResults() : reply->returnError(bus::to_bus(removed.error()));
    };
    authority_.check(caller(), "manage-images", {{"image", id}},
                     [this, done, id, options = *parsed](checkpointd::Result<void> allowed) {
                         if (!allowed) return done(tl::unexpected(std::move(allowed).error()));
                         manager_.remove_image(id, options, done);
                     });
}

void ManagerObject::ExplainImage(sdbus::Result<std::string>&& result, std::string id) {
    auto reply = share(std::move(result));
    auto done = [reply](checkpointd::Result<std::string> plan) {
        plan ? reply->returnResults(*plan) : reply->returnError(bus::to_bus(plan.error()));
    };
    authority_.check(caller(), "inspect", {{"image", id}},
                     [this, done, id](checkpointd::Result<void> allowed) {
                         if (!allowed) return done(tl::unexpected(std::move(allowed).error()));
                         manager_.explain(id, done);
                     });
}

std::vector<ManagerObject::JobRow> ManagerObject::ListJobs() {
    manager_.touch();
    std::vector<JobRow> rows;
    for (const Job* job : manager_.jobs())
        rows.emplace_back(job->id(), std::string(to_string(job->request().type)),
                          job->request().unit, std::string(to_string(job->state())), job->phase(),
                          job->progress(), JobObject::path(job->id()));
    return rows;
}

void ManagerObject::ShowPolicy(sdbus::Result<std::string>&& result, std::string unit) {
    manager_.touch();
    auto name = normalise_unit(unit);
    if (!name) return result.returnError(bus::to_bus(name.error()));
    result.returnResults(print_policy(manager_.policy().for_unit(*name)));
}

void ManagerObject::ReloadPolicy(sdbus::Result<>&& result) {
    auto reply = share(std::move(result));
    authority_.check(caller(), "manage", {}, [this, reply](checkpointd::Result<void> allowed) {
        auto done = allowed ? manager_.reload_policy() : std::move(allowed);
        done ? reply->returnResults() : reply->returnError(bus::to_bus(done.error()));
    });
}

void ManagerObject::job_new(const Job& job) {
    jobs_[job.id()] = std::make_unique<JobObject>(connection_, job, manager_, authority_);
    emitJobNew(job.id(), JobObject::path(job.id()), job.request().unit);
}

void ManagerObject::job_changed(const Job& job, const std::vector<std::string>& properties) {
    jobs_.at(job.id())->changed(properties);
}

void ManagerObject::job_removed(const Job& job) {
    emitJobRemoved(job.id(), JobObject::path(job.id()), job.request().unit,
                   std::string(to_string(job.state())));
}

void ManagerObject::job_forgotten(const Job& job) { jobs_.erase(job.id()); }

}  // namespace checkpointd
