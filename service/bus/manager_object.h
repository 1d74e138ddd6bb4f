// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <map>
#include <memory>

#include "dbus/compat.h"
#include "org.checkpointd1.Manager.adaptor.h"
#include "service/bus/authority.h"
#include "service/bus/job_object.h"
#include "service/manager.h"

namespace checkpointd {

// The manager on the bus: translates calls and announces jobs. All decisions are the Manager's.
class ManagerObject : public sdbus::AdaptorInterfaces<org::checkpointd1::Manager_adaptor>,
                      public JobObserver {
  public:
    ManagerObject(bus::Connection& connection, Manager& manager, std::string version);
    ~ManagerObject();
    ManagerObject(const ManagerObject&) = delete;
    ManagerObject& operator=(const ManagerObject&) = delete;

    void job_new(const Job& job) override;
    void job_changed(const Job& job, const std::vector<std::string>& properties) override;
    void job_removed(const Job& job) override;
    void job_forgotten(const Job& job) override;

  private:
    using ImageRow = sdbus::Struct<std::string, std::string, std::string, uint64_t, uint64_t, uint64_t>;
    using UnitRow = sdbus::Struct<std::string, std::string, std::string>;
    using JobRow = sdbus::Struct<uint32_t, std::string, std::string, std::string, std::string, double,
                                 sdbus::ObjectPath>;

    void CheckpointUnit(sdbus::Result<sdbus::ObjectPath>&& result, std::string unit,
                        bus::VariantMap options) override;
    void RestoreUnit(sdbus::Result<sdbus::ObjectPath>&& result, std::string target,
                     bus::VariantMap options) override;
    void ReviveUnit(sdbus::Result<sdbus::ObjectPath>&& result, std::string unit) override;
    void EnableUnit(sdbus::Result<>&& result, std::string unit) override;
    void DisableUnit(sdbus::Result<>&& result, std::string unit) override;
    void ListUnits(sdbus::Result<std::vector<UnitRow>>&& result) override;
    void ListImages(sdbus::Result<std::vector<ImageRow>>&& result) override;
    void GetImage(sdbus::Result<bus::VariantMap>&& result, std::string id) override;
    void RemoveImage(sdbus::Result<>&& result, std::string id, bus::VariantMap options) override;
    void ExplainImage(sdbus::Result<std::string>&& result, std::string id) override;
    std::vector<JobRow> ListJobs() override;
    void ShowPolicy(sdbus::Result<std::string>&& result, std::string unit) override;
    void ReloadPolicy(sdbus::Result<>&& result) override;
    std::string Version() override { return version_; }
    uint32_t RunningJobs() override { return manager_.running(); }
    std::vector<std::string> PolicyFiles() override { return manager_.policy().files; }

    Caller caller();

    bus::Connection& connection_;
    Manager& manager_;
    Authority authority_;
    std::string version_;
    std::map<uint32_t, std::unique_ptr<JobObject>> jobs_;
};

// The options of a call in terms of our own.
Options from_bus(const bus::VariantMap& options);

}  // namespace checkpointd
