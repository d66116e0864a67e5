//! The endpoint that compares ledgers, tags and reality; shared with clients.

use axum::Json;
use axum::extract::State;
use rehost_control::costs::PriceTable;
use rehost_control::reaper::{self, Leftovers};
use rehost_model::region::LOCAL_REGION;
use serde::{Deserialize, Serialize};

use crate::ApiState;
use crate::error::ApiError;
use crate::extract::Admin;

/// Path of [`LeftoversRequest`]; signed with SigV4 by a key that may do everything. Answered by [`Leftovers`].
pub const LEFTOVERS_PATH: &str = "/rehost/v1/leftovers";

/// The published prices that came with this release.
const PRICES: &str = include_str!("../../../infra/prices.json");

/// Asks what there is, and what of it nobody needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LeftoversRequest {
    /// Whether what nobody needs is removed; otherwise it is only shown.
    pub reap: bool,
}

pub(crate) async fn leftovers(
    State(state): State<ApiState>,
    Admin(request): Admin<LeftoversRequest>,
) -> Result<Json<Leftovers>, ApiError> {
    let prices = prices(&state.ports.region)?;
    Ok(Json(reaper::reap(&state.ports, prices.as_ref(), !request.reap).await?))
}

/// On one's own machine nothing is paid for.
fn prices(region: &str) -> Result<Option<PriceTable>, ApiError> {
    if region == LOCAL_REGION {
        return Ok(None);
    }
    Ok(Some(PriceTable::parse(PRICES)?))
}

#[cfg(test)]
mod tests {
    use rehost_model::ledger::Billed;
    use rehost_model::settings::StagingDiskType;

    use super::*;

    #[test]
    fn the_table_of_prices_has_what_the_ledger_names() {
        let table = prices("eu-central-1").unwrap().unwrap();
        use StagingDiskType as T;
        for kind in [T::Gp2, T::Gp3, T::Io1, T::Io2, T::Sc1, T::St1, T::Standard] {
            assert!(table.monthly(&Billed::volume(kind, 1 << 30)).is_some_and(|price| price > 0.0), "{kind:?}");
        }
        let usual = rehost_model::settings::ReplicationSettings::default().replication_server_instance_type;
        assert!(table.monthly(&Billed::instance(&usual)).is_some());
        assert!(prices(LOCAL_REGION).unwrap().is_none());
    }
}
