//! The servers' data keys: 32 random bytes each, made when they are first needed, kept sealed, and opened only for the
//! replication server that seals the server's journal with them.

use rehost_model::SourceServer;
use rehost_model::link::DataKey;
use zeroize::Zeroizing;

use crate::ports::{PortResult, Ports};
use crate::{PortError, repo};

/// The server's data key, made now if it has none.
pub(crate) async fn of(ports: &Ports, server: &SourceServer) -> PortResult<DataKey> {
    let sealed = match &server.internal.data_key_sealed {
        Some(sealed) => sealed.clone(),
        None => make(ports, server).await?,
    };
    let damaged = |why: String| {
        let id = &server.source_server_id;
        PortError::invalid(format!("the data key of {id} is damaged ({why}); restore the store from a backup"))
    };
    let sealed = hex::decode(sealed).map_err(|e| damaged(e.to_string()))?;
    let plain = Zeroizing::new(ports.keys.open(&sealed, &context(server)).await?);
    let key = plain.as_slice().try_into().map_err(|_| damaged(format!("it has {} bytes", plain.len())))?;
    Ok(DataKey(key))
}

/// Makes a key; of two that do so at once, both get that of the first.
async fn make(ports: &Ports, server: &SourceServer) -> PortResult<String> {
    let mut plain = Zeroizing::new([0u8; 32]);
    getrandom::fill(plain.as_mut()).map_err(|e| PortError::unavailable(format!("no randomness for a key: {e}")))?;
    let sealed = hex::encode(ports.keys.seal(plain.as_ref(), &context(server)).await?);
    let (_, sealed) = repo::update_server(ports, &server.source_server_id, |server| {
        Ok::<_, PortError>(server.internal.data_key_sealed.get_or_insert_with(|| sealed.clone()).clone())
    })
    .await?;
    Ok(sealed)
}

fn context(server: &SourceServer) -> String {
    format!("data-key/{}", server.source_server_id)
}
