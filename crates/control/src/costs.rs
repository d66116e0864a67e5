//! What resources cost: the hours of the ledger times published prices.

use std::collections::BTreeMap;

use rehost_model::ledger::{Billed, LedgerEntry};
use rehost_model::{ServerId, SourceServer, Timestamp};
use serde::{Deserialize, Serialize};

use crate::PortError;
use crate::ports::PortResult;

/// AWS counts a month as so many hours.
const HOURS_A_MONTH: f64 = 730.0;

/// A table of published prices, such as `infra/prices.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct PriceTable {
    /// The region whose prices these are.
    pub region: String,
    /// Such as `USD`.
    pub currency: String,
    prices: Vec<Price>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Price {
    id: String,
    price: f64,
    unit: String,
}

impl PriceTable {
    /// Reads a table in JSON: `{"region", "currency", "prices": [{"id", "price", "unit", …}, …]}`.
    ///
    /// # Errors
    /// `Invalid` when it is none.
    pub fn parse(json: &str) -> PortResult<Self> {
        serde_json::from_str(json).map_err(|e| PortError::invalid(format!("the table of prices: {e}; mend it there")))
    }

    /// What an hour of this costs; `None` when the table does not have it, or it is not paid for by time.
    #[must_use]
    pub fn hourly(&self, billed: &Billed) -> Option<f64> {
        let price = self.prices.iter().find(|price| price.id == billed.item)?;
        let hourly = match price.unit.as_str() {
            "hour" => price.price,
            "GB-month" | "month" => price.price / HOURS_A_MONTH,
            _ => return None,
        };
        Some(hourly * units(billed.quantity))
    }

    /// What a month of this costs; see [`Self::hourly`].
    #[must_use]
    pub fn monthly(&self, billed: &Billed) -> Option<f64> {
        self.hourly(billed).map(|hourly| hourly * HOURS_A_MONTH)
    }
}

/// What a server costs; what is not in the table or the ledger does not know is left out: snapshots, of which only what changed is paid
/// for, launched copies, requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerCost {
    #[serde(rename = "sourceServerID")]
    pub server: ServerId,
    pub currency: String,
    /// A month of what exists now.
    pub monthly: f64,
    /// Of everything until now.
    pub so_far: f64,
}

/// The cost of each server that has, or had, something. What servers share is divided among them.
#[must_use]
pub fn of_servers(
    prices: &PriceTable,
    servers: &[SourceServer],
    ledger: &[LedgerEntry],
    now: Timestamp,
) -> Vec<ServerCost> {
    let mut shared: BTreeMap<&str, u64> = BTreeMap::new();
    for entry in ledger {
        *shared.entry(&entry.token).or_default() += 1;
    }
    let cost = |server: &SourceServer| {
        let (mut monthly, mut so_far) = (0.0, 0.0);
        for (item, used) in &server.internal.usage {
            let billed = Billed { item: item.clone(), quantity: *used };
            so_far += prices.hourly(&billed).unwrap_or(0.0) / 3600.0;
        }
        for entry in ledger.iter().filter(|e| e.server == server.source_server_id && e.resource.is_some()) {
            let share = units(shared.get(entry.token.as_str()).copied().unwrap_or(1));
            let hourly = entry.billed.as_ref().and_then(|billed| prices.hourly(billed)).unwrap_or(0.0) / share;
            monthly += hourly * HOURS_A_MONTH;
            so_far += hourly * units(now.ms_since(entry.created) / 1000) / 3600.0;
        }
        let (server, currency) = (server.source_server_id.clone(), prices.currency.clone());
        ServerCost { server, currency, monthly, so_far }
    };
    servers.iter().map(cost).filter(|cost| cost.monthly > 0.0 || cost.so_far > 0.0).collect()
}

/// Beyond 2^53 a cost is not exact.
#[allow(clippy::cast_precision_loss)]
fn units(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use rehost_model::settings::StagingDiskType;

    use super::*;

    fn table() -> PriceTable {
        PriceTable::parse(
            r#"{"region":"us-east-1","currency":"USD","about":"…","prices":[
                {"id":"volume.gp3","price":0.08,"unit":"GB-month","what":"…"},
                {"id":"instance.t3.small","price":0.02,"unit":"hour"},
                {"id":"snapshot.list","price":6e-07,"unit":"request"}]}"#,
        )
        .unwrap()
    }

    #[test]
    fn prices_are_by_the_hour_and_the_month() {
        let prices = table();
        let near = |price: Option<f64>, expected: f64| (price.unwrap() - expected).abs() < 1e-9;
        assert!(near(prices.monthly(&Billed::volume(StagingDiskType::Gp3, (100 << 30) + 1)), 8.08));
        assert!(near(prices.monthly(&Billed::instance("t3.small")), 14.6));
        assert_eq!(prices.monthly(&Billed::instance("z9.huge")), None);
        assert_eq!(prices.monthly(&Billed { item: "snapshot.list".to_owned(), quantity: 1 }), None);
    }

    #[test]
    fn what_is_no_table_is_refused() {
        assert!(PriceTable::parse("{}").is_err());
    }
}
