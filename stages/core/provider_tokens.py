"""The shapes of keys and tokens that providers give out, after their documentation and the rules of gitleaks (its config/gitleaks.toml).

In: a text. Out: findings. What has no shape of its own (a hexadecimal key of Adafruit, say) is found by the name it is assigned to, in
secrets.py.
"""

import re

from stages.core.redaction import Finding

# kind, a literal without which the shape is not tried, and the shape; UUID stands for one; word characters before or after end it
_TABLE = r"""
aws_access_key      AKIA          AKIA[A-Z2-7]{16}
aws_access_key      ASIA          ASIA[A-Z2-7]{16}
aws_access_key      A             (?:ABIA|ACCA|A3T[A-Z0-9])[A-Z2-7]{16}
github_token        gh            gh[pousr]_[A-Za-z0-9]{36,255}
github_token        github_pat_   github_pat_\w{60,255}
gitlab_token        gl            gl(?:pat|dt|rt|rtr|cbt|ptt|ft|soat|agent|imt|ffct|oas)-[\w.-]{20,300}
gitlab_token        GR1348941     GR1348941[\w-]{20}
slack_token         xox           xox[abeoprs](?:\.xox[bp])?-(?:\d+-)?[A-Za-z0-9-]{10,250}
slack_token         xapp-         xapp-\d-[A-Z0-9]+-\d+-[a-z0-9]+
slack_token         hooks.slack   hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9+/]{40,80}
stripe_key          k_            [sr]k_(?:(?:live|test|prod)_)?[A-Za-z0-9]{20,250}
stripe_key          whsec_        whsec_[A-Za-z0-9+/=]{20,250}
google_key          AIza          AIza[\w-]{35}(?!-)
google_key          ya29.         ya29\.[\w-]{40,}
google_key          GOCSPX-       GOCSPX-[\w-]{28}
azure_key           Q~            (?<![.~])[\w.~]{3}\dQ~[\w.~-]{31,34}
azure_key           AccountKey=   AccountKey=[A-Za-z0-9+/]{86}==
anthropic_key       sk-ant-       sk-ant-[\w-]{20,}
openai_key          sk-           (?<!-)sk-(?!ant-)(?:proj-|svcacct-|admin-|or-v1-)?(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{32,}
hugging_face_token  hf_           hf_[A-Za-z0-9]{34}
hugging_face_token  api_org_      api_org_[A-Za-z0-9]{34}
package_token       npm_          npm_[A-Za-z0-9]{36}
package_token       pypi-AgE      pypi-AgE[\w-]{50,}
package_token       rubygems_     rubygems_[a-f0-9]{48}
package_token       dckr_         dckr_[po]at_[\w-]{27,}
package_token       CLOJARS_      CLOJARS_[a-z0-9]{60}
package_token       oy2           oy2[a-z0-9]{43}
package_token       cio           cio[A-Za-z0-9]{32}
mail_service_key    SG.           SG\.[\w-]{16,32}\.[\w-]{16,64}
mail_service_key    key-          key-[a-f0-9]{32}
mail_service_key    -us           [a-f0-9]{32}-us\d{1,2}
mail_service_key    sib-          x(?:key|smtp)sib-[a-f0-9]{64}-[A-Za-z0-9]{16}
chat_token          :A            \d{8,12}:A[\w-]{34}(?!-)
chat_token          .             (?<![.-])[MNO][A-Za-z0-9]{23,27}\.[\w-]{6}\.[\w-]{27,40}
chat_token          discord       discord(?:app)?\.com/api/webhooks/\d{17,20}/[\w-]{60,80}
chat_token          webhookb2     webhook\.office\.com/webhookb2/UUID@UUID/IncomingWebhook/[a-z0-9]{32}/UUID
jwt                 eyJ           (?<!-)eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}
provider_token      LTAI          LTAI[A-Za-z0-9]{20}
provider_token      AKCp          AKCp[A-Za-z0-9]{69}
provider_token      cmVmd         cmVmd[A-Za-z0-9]{59}
provider_token      ATATT3        ATATT3[\w=-]{180,}
provider_token      ATBB          ATBB[A-Za-z0-9]{32}
provider_token      EAA           EAA[A-Z][A-Za-z0-9]{90,}
provider_token      EAAA          EAAA[\w-]{40,60}
provider_token      A3-           A3-[A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})(?:-[A-Z0-9]{5}){3}
provider_token      ops_eyJ       ops_eyJ[A-Za-z0-9+/]{200,}={0,3}
provider_token      p8e-          p8e-[A-Za-z0-9]{32}
provider_token      dapi          dapi[a-f0-9]{32}(?:-\d)?
provider_token      _v1_          do[opr]_v1_[a-f0-9]{64}
provider_token      dp.           dp\.(?:pt|st|ct|sa|scim|audit)\.[\w.-]{40,}
provider_token      duffel_       duffel_(?:test|live)_[\w=-]{43}
provider_token      dt0c01.       dt0c01\.[A-Z0-9]{24}\.[A-Z0-9]{64}
provider_token      EZ            EZ[AT]K[A-Za-z0-9]{54}
provider_token      FLWSECK       FLWSECK(?:_TEST)?-[a-h0-9]{12,32}(?:-X)?
provider_token      fo1_          fo1_[\w-]{43}
provider_token      fm            fm[12][ar]?_[A-Za-z0-9+/]{100,}={0,3}
provider_token      fio-u-        fio-u-[\w=-]{64}
provider_token      glc_          glc_[A-Za-z0-9+/]{32,400}={0,2}
provider_token      glsa_         glsa_[A-Za-z0-9]{32}_[A-Fa-f0-9]{8}
provider_token      eyJrIjoi      eyJrIjoi[A-Za-z0-9]{70,400}={0,2}
provider_token      .atlasv1.     [A-Za-z0-9]{14}\.atlasv1\.[\w=-]{60,70}
provider_token      hv            hv[sbr]\.[\w-]{24,300}
provider_token      HRKU-         HRKU-AA[\w-]{58}
provider_token      ico-          ico-[A-Za-z0-9]{32}
provider_token      lin_          lin_(?:api|oauth)_[A-Za-z0-9]{40,64}
provider_token      _mmk          [A-Za-z0-9]{6}_[A-Za-z0-9]{29}_mmk
provider_token      at.           [ps]at\.[\w-]{22}\.[0-9a-f]{24}\.\w{20}
provider_token      k.eyJ         [ps]k\.eyJ[\w-]{40,}\.[\w-]{20,}
provider_token      NR            NR(?:AK-[A-Z0-9]{27}|II-[\w-]{32}|JS-[a-f0-9]{19})
provider_token      ntn_          ntn_\d{11}[A-Za-z0-9]{35}
provider_token      API-          API-[A-Z0-9]{26}
provider_token      sha256~       sha256~[\w-]{43}
provider_token      pplx-         pplx-[A-Za-z0-9]{48}
provider_token      access-       access-(?:sandbox|development|production)-UUID
provider_token      pscale_       pscale_(?:tkn|oauth|pw)_[\w=.-]{32,64}
provider_token      PMAK-         PMAK-[a-f0-9]{24}-[a-f0-9]{34}
provider_token      pn            pn[ub]_[A-Za-z0-9]{36}
provider_token      pul-          pul-[a-f0-9]{40}
provider_token      rdme_         rdme_[a-z0-9]{70}
provider_token      tk-us-        tk-us-[\w-]{48}
provider_token      sntryu_       sntryu_[a-f0-9]{64}
provider_token      sntrys_       sntrys_eyJ[A-Za-z0-9+/=]{40,}_[A-Za-z0-9+/]{43}
provider_token      sm_           sm_[aps]at_[A-Za-z0-9]{16}
provider_token      shippo_       shippo_(?:live|test)_[a-f0-9]{40}
provider_token      shp           shp(?:at|ca|pa|ss|tka)_[a-fA-F0-9]{32}
provider_token      sgp_          sgp_(?:(?:[a-f0-9]{16}|local)_)?[a-f0-9]{40}
provider_token      sq0           sq0(?:atp|csp|idp)-[\w-]{22,60}
provider_token      SK            SK[0-9a-f]{32}
provider_token      tfp_          tfp_[\w-]{40,70}
provider_token      sq            sq[pua]_[a-f0-9]{40}
provider_token      sl.           sl\.[\w=-]{130,}
provider_token      xai-          xai-[A-Za-z0-9]{70,}
provider_token      gsk_          gsk_[A-Za-z0-9]{48,}
provider_token      r8_           r8_[A-Za-z0-9]{37}
provider_token      figd_         figd_[\w-]{38,}
provider_token      sbp_          sbp_[a-f0-9]{40}
provider_token      nfp_          nfp_[A-Za-z0-9]{36}
provider_token      tskey-        tskey-[a-z]+-[\w-]{20,}
provider_token      nvapi-        nvapi-[\w-]{60,}
provider_token      lsv2_         lsv2_(?:pt|sk)_[a-f0-9]{32}_[a-f0-9]{10}
provider_token      pcsk_         pcsk_[\w-]{40,}
provider_token      bkua_         bkua_[a-f0-9]{40}
provider_token      CCIPAT_       CCIPAT_\w{20,}_[a-f0-9]{40}
provider_token      pat           pat[A-Za-z0-9]{14}\.[a-f0-9]{64}
"""
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_SHAPES = [
    (kind, literal, re.compile(rf"(?<![A-Za-z0-9_])(?:{shape.replace('UUID', _UUID)})(?![A-Za-z0-9_])", re.ASCII))
    for kind, literal, shape in (line.split(maxsplit=2) for line in _TABLE.strip().splitlines())
]
_LONG_WORD = re.compile(r"[\w.~+/=:@-]{20,}", re.ASCII)  # every shape lies within one, and most texts have none
MIN_DISTINCT = 7  # characters of a token; one written to show the shape, such as ghp_xxxxxxxx, has fewer


def find_tokens(text: str) -> list[Finding]:
    """Every provider's token in a text, unordered; a documentation's own example is none.

    Args:
        text: any text.

    Returns:
        Findings; spans may overlap.
    """
    return [
        Finding(match.start(), match.end(), kind)
        for word in _LONG_WORD.finditer(text)
        for kind, literal, shape in _SHAPES
        if literal in word[0]
        for match in shape.finditer(text, *word.span())
        if "EXAMPLE" not in match[0].upper() and len(set(match[0])) >= MIN_DISTINCT
    ]
