//! The content of snapshots, through the EBS direct APIs: a list of the blocks that were ever written, each with a token, and
//! block by block what it holds. A block that is not in the list is zeros.
//!
//! Lists are kept for the reads that follow: whoever verifies a snapshot reads it from its beginning to its end.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use aws_sdk_ebs::Client;
use aws_sdk_ebs::types::ChecksumAlgorithm;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rehost_control::PortError;
use rehost_control::ports::{MAX_SNAPSHOT_READ, PortResult};
use rehost_model::SnapshotId;
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;

use crate::Ec2Compute;
use crate::errors::failed;

/// Bytes of a block, the same for all snapshots.
const BLOCK: usize = 512 << 10;

/// Blocks in one list; the API takes 100 to 10,000.
const LISTED_AT_ONCE: i32 = 1000;

/// EBS counts sizes in these; bytes.
const GIB: u64 = 1 << 30;

/// What is known of a part of a snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    snapshot: SnapshotId,
    /// Bytes of the whole snapshot.
    size: u64,
    /// Indices of blocks from here on up to (and without) `until` are in `tokens`, or their blocks are zeros.
    from: u64,
    until: u64,
    tokens: BTreeMap<u64, String>,
}

/// The last listing.
pub(crate) type KnownListing = Mutex<Option<Listing>>;

impl Listing {
    fn covers(&self, snapshot: &SnapshotId, first: u64, end: u64) -> bool {
        let whole = self.size.div_ceil(BLOCK as u64);
        self.snapshot == *snapshot && self.from <= first && end.min(whole) <= self.until
    }
}

impl Ec2Compute {
    /// See [`rehost_control::ports::Compute::read_snapshot`].
    pub(crate) async fn read_blocks(&self, snapshot: &SnapshotId, offset: u64, length: usize) -> PortResult<Vec<u8>> {
        let block = BLOCK as u64;
        if !offset.is_multiple_of(block) || !length.is_multiple_of(BLOCK) || length > MAX_SNAPSHOT_READ {
            return Err(PortError::invalid(format!(
                "{length} bytes from {offset} of {snapshot} cannot be read: both must be multiples of {BLOCK}, the length at most \
                 {MAX_SNAPSHOT_READ}"
            )));
        }
        let (first, end) = (offset / block, offset.saturating_add(length as u64) / block);
        let listing = self.listing(snapshot, first, end).await?;
        let available = usize::try_from(listing.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(length);
        let mut bytes = vec![0; available];
        let mut reads = JoinSet::new();
        for (index, token) in listing.tokens.range(first..end) {
            reads.spawn(read_block(self.ebs.clone(), snapshot.clone(), *index, token.clone()));
        }
        while let Some(read) = reads.join_next().await {
            let (index, data) =
                read.map_err(|e| PortError::unavailable(format!("a read of {snapshot} was cut off: {e}")))??;
            place(&mut bytes, usize::try_from(index - first).unwrap_or(usize::MAX), &data);
        }
        Ok(bytes)
    }

    async fn listing(&self, snapshot: &SnapshotId, first: u64, end: u64) -> PortResult<Listing> {
        let known = self.listing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(listing) = known.filter(|listing| listing.covers(snapshot, first, end)) {
            return Ok(listing);
        }
        let listing = list(&self.ebs, snapshot, first).await?;
        *self.listing.lock().unwrap_or_else(PoisonError::into_inner) = Some(listing.clone());
        Ok(listing)
    }
}

async fn list(ebs: &Client, snapshot: &SnapshotId, first: u64) -> PortResult<Listing> {
    let too_far = || PortError::invalid(format!("{snapshot} has no block {first}"));
    let start = i32::try_from(first).map_err(|_| too_far())?;
    let listed = ebs
        .list_snapshot_blocks()
        .snapshot_id(snapshot.as_str())
        .starting_block_index(start)
        .max_results(LISTED_AT_ONCE)
        .send()
        .await
        .map_err(|e| failed("ebs:ListSnapshotBlocks", snapshot, &e))?;
    let known = |block: &aws_sdk_ebs::types::Block| {
        Some((u64::try_from(block.block_index()?).ok()?, block.block_token()?.to_owned()))
    };
    let tokens: BTreeMap<u64, String> = listed.blocks().iter().filter_map(known).collect();
    let last = tokens.last_key_value().map_or(first, |(index, _)| index + 1);
    let gib = listed.volume_size().and_then(|gib| u64::try_from(gib).ok());
    let gib = gib.ok_or_else(|| PortError::unavailable(format!("EBS did not say how large {snapshot} is")))?;
    let until = if listed.next_token().is_some() { last } else { u64::MAX };
    Ok(Listing { snapshot: snapshot.clone(), size: gib.saturating_mul(GIB), from: first, until, tokens })
}

async fn read_block(ebs: Client, snapshot: SnapshotId, index: u64, token: String) -> PortResult<(u64, Vec<u8>)> {
    let subject = format!("block {index} of {snapshot}");
    let number = i32::try_from(index).map_err(|_| PortError::invalid(format!("there is no {subject}")))?;
    let call = ebs.get_snapshot_block().snapshot_id(snapshot.as_str()).block_index(number).block_token(token);
    let block = call.send().await.map_err(|e| failed("ebs:GetSnapshotBlock", &subject, &e))?;
    let (algorithm, checksum) = (block.checksum_algorithm.clone(), block.checksum.clone());
    let cut_off = |e| PortError::unavailable(format!("{subject} was cut off: {e}"));
    let data = block.block_data.collect().await.map_err(cut_off)?.to_vec();
    check(&data, algorithm.as_ref(), checksum.as_deref(), &subject)?;
    Ok((index, data))
}

/// Block data is not covered by the request's signature: its checksum is all there is.
fn check(data: &[u8], algorithm: Option<&ChecksumAlgorithm>, checksum: Option<&str>, subject: &str) -> PortResult<()> {
    let known = matches!(algorithm, None | Some(ChecksumAlgorithm::ChecksumAlgorithmSha256));
    let right = known && checksum == Some(BASE64.encode(Sha256::digest(data)).as_str());
    if right && data.len() <= BLOCK {
        return Ok(());
    }
    Err(PortError::unavailable(format!("{subject} came damaged ({} bytes): it is read again", data.len())))
}

/// Puts a block into its place; what is beyond the end is left out.
fn place(bytes: &mut [u8], block: usize, data: &[u8]) {
    let start = block.saturating_mul(BLOCK).min(bytes.len());
    let length = data.len().min(bytes.len() - start);
    bytes[start..start + length].copy_from_slice(&data[..length]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_go_to_their_places_and_not_beyond_the_end() {
        let mut bytes = vec![0; BLOCK + 3];
        place(&mut bytes, 1, &[7; 10]);
        place(&mut bytes, 2, &[9; 10]);
        assert_eq!(bytes[BLOCK..], [7, 7, 7]);
        assert!(bytes[..BLOCK].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn damaged_blocks_are_refused() {
        let right = BASE64.encode(Sha256::digest([1, 2, 3]));
        let sha256 = ChecksumAlgorithm::ChecksumAlgorithmSha256;
        assert!(check(&[1, 2, 3], Some(&sha256), Some(&right), "b").is_ok());
        assert!(check(&[1, 2, 4], Some(&sha256), Some(&right), "b").unwrap_err().kind.retryable());
        assert!(check(&[1, 2, 3], Some(&sha256), None, "b").is_err());
        assert!(check(&[1, 2, 3], Some(&ChecksumAlgorithm::from("CRC")), Some(&right), "b").is_err());
        let long = vec![0; BLOCK + 1];
        assert!(check(&long, Some(&sha256), Some(&BASE64.encode(Sha256::digest(&long))), "b").is_err());
    }

    #[test]
    fn a_listing_covers_what_it_lists_of_its_snapshot() {
        let snapshot = SnapshotId::generate();
        let listing =
            |until| Listing { snapshot: snapshot.clone(), size: GIB, from: 8, until, tokens: BTreeMap::new() };
        assert!(listing(16).covers(&snapshot, 8, 16));
        assert!(!listing(16).covers(&snapshot, 7, 16));
        assert!(!listing(16).covers(&snapshot, 8, 17));
        assert!(!listing(16).covers(&SnapshotId::generate(), 8, 16));
        assert!(listing(2048).covers(&snapshot, 2047, 3000), "beyond the end there is nothing to know");
    }
}
